"""The unmodified `openai` client against a server: the same answers as the handler's, whole and streamed."""

import asyncio

import pytest

from tests.hub import samples

openai = pytest.importorskip("openai", reason="needs the extra [test]")
for library in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra [serve]")
from tests.dsr_toolkit.running_server import RunningServer  # noqa: E402


@pytest.fixture(scope="module")
def server(served):
    with RunningServer(served, keys={"tester": "a-long-secret"}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="a-long-secret", max_retries=0, timeout=120) as client:
        yield client


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{samples.encoded(content)}"


def question(seed: int) -> list[dict]:
    """The messages that ask what `samples.ask(seed)` does."""
    inputs = samples.ask(seed)["inputs"]
    if "video" in inputs:
        shown = {"type": "video_url", "video_url": {"url": data_url(samples.video(), "video/mp4")}}
    else:
        shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{inputs['images'][0]}"}}
    return [{"role": "user", "content": [shown, {"type": "text", "text": inputs["question"]}]}]


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["dsr", "cad_recode", "cadrille"]
    assert client.models.retrieve("cadrille").id == "cadrille"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_question_about_an_image_has_the_handlers_answer(client, served):
    expected = served(samples.ask(1))
    reply = client.chat.completions.create(model="dsr", messages=question(1), max_tokens=6)
    (choice,) = reply.choices
    assert choice.message.content == expected["answer"] and choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (expected["prompt_tokens"], 6)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 6


def test_a_question_about_a_video_streams_the_handlers_answer(client, served):
    expected = served(samples.ask(0, num_frames=None))
    chunks = list(
        client.chat.completions.create(
            model="dsr",
            messages=question(0),
            max_completion_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == expected["answer"] and len(pieces) > 2
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 6 and len({chunk.id for chunk in chunks}) == 1


def test_programs_of_a_text_and_of_points(client, served):
    expected = served(samples.cad(1))["programs"][0]
    text = [{"role": "user", "content": samples.cad(1)["inputs"]["text"]}]
    assert (
        client.chat.completions.create(model="cadrille", messages=text, max_tokens=8).choices[0].message.content
        == expected
    )

    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.array(samples.points()))
    file = {"file_data": data_url(stream.getvalue(), "application/octet-stream"), "filename": "points.npy"}
    messages = [{"role": "user", "content": [{"type": "file", "file": file}]}]
    pieces = client.chat.completions.create(model="cad_recode", messages=messages, max_tokens=8, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert text == served(samples.cad_recode())["programs"][0]


def test_several_answers_are_sampled_from_a_seed(client):
    def ask(**options):
        reply = client.chat.completions.create(model="dsr", messages=question(1), max_tokens=6, n=3, **options)
        return [choice.message.content for choice in reply.choices]

    first, again, other = ask(temperature=1.5, seed=7), ask(temperature=1.5, seed=7), ask(temperature=1.5, seed=8)
    assert first == again != other and len(set(first)) == 3


def test_a_nucleus_of_nothing_is_the_likeliest_answer(client, served):
    reply = client.chat.completions.create(model="dsr", messages=question(1), max_tokens=6, temperature=1.0, top_p=1e-6)
    assert reply.choices[0].message.content == served(samples.ask(1))["answer"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_its_stop(client, served, stream):
    answer = served(samples.ask(1))["answer"]
    stop = answer[len(answer) // 2 : len(answer) // 2 + 2]
    reply = client.chat.completions.create(
        model="dsr", messages=question(1), max_tokens=6, stop=[stop, "%%"], stream=stream
    )
    if stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert text == answer[: answer.index(stop)].rstrip() and reason == "stop"


def test_a_conversation_is_read_whole(client):
    talk = [{"role": "system", "content": "Answer briefly."}, *question(1), {"role": "assistant", "content": "Left."}]
    talk.append({"role": "user", "content": "Are you sure?"})
    long = client.chat.completions.create(model="dsr", messages=talk, max_tokens=4)
    short = client.chat.completions.create(model="dsr", messages=talk[1:2], max_tokens=4)
    assert long.usage.prompt_tokens > short.usage.prompt_tokens + 10


def test_the_asynchronous_client_too(server, served):
    async def ask() -> tuple[list[str], str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="a-long-secret", timeout=120) as client:
            many = [
                client.chat.completions.create(model="dsr", messages=question(seed), max_tokens=6) for seed in (1, 3)
            ]
            answers = [reply.choices[0].message.content for reply in await asyncio.gather(*many)]
            stream = await client.chat.completions.create(model="dsr", messages=question(1), max_tokens=6, stream=True)
            return answers, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answers, streamed = asyncio.run(ask())
    assert answers == [served(samples.ask(seed))["answer"] for seed in (1, 3)] and streamed == answers[0]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "?"}]}]}, "nothing is fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "must be of text, image_url"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "end with a turn"),
        ({"messages": []}, "a list of messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "`tools` is not supported"),
        ({"logprobs": True}, "`logprobs` is not supported"),
        ({"max_tokens": 10**6}, "at most"),
        ({"temperature": -1}, "at least 0"),
        ({"extra_body": {"beams": 4}}, "`beams` is not known"),
        ({"model": "cadrille", "messages": [{"role": "system", "content": "x"}]}, "one message"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_is_refused(client, changed, message):
    asked = {"model": "dsr", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 2, **changed}
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.status_code in (400, 413, 422) and caught.value.type == "invalid_request_error"


def test_errors_are_those_that_the_client_knows(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="wrong-secret", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="dsr", messages=[{"role": "user", "content": "?"}])
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    with openai.OpenAI(base_url=server.url + "/v1", api_key="a-long-secret", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="must be one of dsr"):
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "?"}])
