import pytest


@pytest.fixture(scope="session")
def dsr_processor():
    from transformers import AutoProcessor

    from dsr_toolkit import tiny

    return AutoProcessor.from_pretrained(tiny.hub_folder("dsr"))


@pytest.fixture(scope="session")
def cad_processor():
    from transformers import AutoProcessor

    from dsr_toolkit import tiny

    return AutoProcessor.from_pretrained(tiny.hub_folder("cad_recode"))
