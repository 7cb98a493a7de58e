"""torch.compile takes the paths that people run as one graph, or nearly: breaks are counted on tiny models."""

import pytest

from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from tests.modeling_dsr import pi3_samples, test_dsr_behaviour, test_modeling_page4d, test_modeling_pi3
from tests.modeling_dsr.cad_samples import cad_recode_config, cad_recode_inputs, cadrille_config, cadrille_inputs
from tests.modeling_dsr.graph_breaks import decoding_step, graph_breaks

pytestmark = pytest.mark.slow


def test_pi3_is_one_graph():
    model = test_modeling_pi3.random_model(pi3_samples.tiny_config("pi3"))
    assert graph_breaks(model, pi3_samples.images(1)) == []


def test_page4d_is_one_graph():
    assert graph_breaks(test_modeling_page4d.random_model(), test_modeling_page4d.frames(1, 3)) == []


def test_decoding_of_cad_recode_is_one_graph():
    model = CADRecodeForCausalLM(cad_recode_config()).eval()
    assert graph_breaks(model, **decoding_step(model, cad_recode_inputs(2), cache_implementation="static")) == []


def test_decoding_of_cadrille_is_one_graph():
    model = CadrilleForConditionalGeneration(cadrille_config()).eval()
    assert graph_breaks(model, **decoding_step(model, cadrille_inputs("pv"), cache_implementation="static")) == []


def test_the_towers_of_dsr_leave_the_graph_once():
    """Grids of media are read, and nothing behind that depends on values: three videos of three sizes."""
    model = test_dsr_behaviour.build()
    prompts = test_dsr_behaviour.collate([test_dsr_behaviour.conversation(index, answer=0) for index in (0, 1)])
    breaks = graph_breaks(model.get_video_features, prompts["pixel_values_videos"], prompts["video_grid_thw"])
    assert len(breaks) == 1 and "_layout" in breaks[0], breaks


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_decoding_of_dsr_is_one_graph(cache):
    model = test_dsr_behaviour.build()
    prompts = test_dsr_behaviour.collate([test_dsr_behaviour.conversation(index, answer=0) for index in (0, 1)])
    assert graph_breaks(model, **decoding_step(model, prompts, cache_implementation=cache)) == []
