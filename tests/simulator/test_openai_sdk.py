"""Every endpoint, asked by the real `openai` package, pointed straight at the simulator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from harness.simulator import Simulator

QUESTION: Any = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "how are you"},
]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def client(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_chat_says_that_it_is_simulated_and_counts_words(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sim-model", messages=QUESTION)
    content = answer.choices[0].message.content
    assert content is not None
    assert content.startswith("This is a simulated answer")
    assert content.endswith("You said: how are you")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == len(content.split())


def test_a_stream_tells_its_use_only_when_asked(client: openai.OpenAI) -> None:
    silent = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))
    assert all(chunk.usage is None for chunk in silent)
    assert "usage" not in silent[0].model_fields_set
    found = list(
        client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in found[:-1])
    assert found[-1].choices == []
    assert found[-1].usage is not None
    assert found[-1].usage.completion_tokens == len(found) - 3


def test_a_stream_and_an_answer_in_one_piece_agree(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m?events=7", messages=QUESTION, n=2)
    text, usage = ["", ""], None
    for chunk in client.chat.completions.create(
        model="m?events=7",
        messages=QUESTION,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
    assert text == [choice.message.content for choice in answer.choices]
    assert usage == answer.usage
    assert usage is not None
    assert usage.completion_tokens == 14


def test_usage_can_be_set(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=QUESTION,
        extra_headers={"x-sim": "prompt=40; completion=30; cached; reasoning=9"},
    )
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (40, 30, 70)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 10
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "m", "messages": QUESTION, "tools": [WEATHER]}
    if stream:
        arguments, names = "", []
        for chunk in client.chat.completions.create(**asked, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                arguments += call.function.arguments or ""
                names += [call.function.name] if call.function.name else []
        assert names == ["get_weather"]
    else:
        made = client.chat.completions.create(**asked).choices[0]
        assert made.finish_reason == "tool_calls"
        assert made.message.tool_calls
        arguments = made.message.tool_calls[0].function.arguments
    assert json.loads(arguments) == {"city": "simulated"}


def test_a_tools_result_is_answered_with_text(client: openai.OpenAI) -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    answer = client.chat.completions.create(
        model="m", messages=[*QUESTION, result], tools=[WEATHER]
    )
    assert answer.choices[0].message.content


def test_json_mode_responds_with_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=QUESTION, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content or "")["simulated"] is True


def test_old_completions_in_both_places(client: openai.OpenAI, simulator: Simulator) -> None:
    answer = client.completions.create(model="m", prompt="one two three", user="old")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    events = list(
        client.completions.create(
            model="m", prompt="one", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(e.choices[0].text for e in events[:-1]).startswith("This is a simulated")
    assert events[-1].usage is not None
    old = client.post("/engines/davinci-codex/completions", body={"prompt": "x"}, cast_to=object)
    assert isinstance(old, dict)
    assert old["model"] == "davinci-codex"


def test_embeddings_in_numbers_and_in_base64(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model="sim-embedding", input="one two")
    plain = client.embeddings.create(
        model="sim-embedding", input=["one two", "three"], encoding_format="float"
    )
    assert short.data[0].embedding == plain.data[0].embedding
    assert plain.usage.prompt_tokens == 3
    assert len(client.embeddings.create(model="m", input="x", dimensions=3).data[0].embedding) == 3


def test_responses_in_one_piece_and_by_id(client: openai.OpenAI) -> None:
    made = client.responses.create(model="m", input="how are you")
    assert "simulated" in made.output_text
    assert made.usage is not None
    assert made.usage.input_tokens == 3
    assert client.responses.retrieve(made.id).output_text == made.output_text
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_responses_as_typed_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input="hello", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    with client.responses.stream(model="m", input="hello") as stream:
        final = stream.get_final_response()
    assert final.usage is not None
    assert final.usage.output_tokens == kinds.count("response.output_text.delta")


def test_responses_call_functions(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    made = client.responses.create(model="m", input="hello", tools=[tool])
    assert made.output[0].type == "function_call"
    events = list(client.responses.create(model="m", input="x", tools=[tool], stream=True))
    assert events[-1].type == "response.completed"


def test_models(client: openai.OpenAI) -> None:
    assert "sim-model" in [model.id for model in client.models.list()]
    assert client.models.retrieve("sim-model").owned_by == "simulator"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing-model")


def test_moderations(client: openai.OpenAI) -> None:
    assert client.moderations.create(input=["a", "b"]).results[1].flagged is False


def test_transcriptions_are_billed_by_tokens_or_by_seconds(client: openai.OpenAI) -> None:
    sound = ("talk.wav", b"\0" * 96_000)
    by_tokens = client.audio.transcriptions.create(model="sim-transcribe", file=sound)
    assert by_tokens.usage is not None
    assert by_tokens.usage.type == "tokens"
    assert by_tokens.usage.input_tokens == 3
    by_seconds = client.audio.transcriptions.create(model="whisper-1", file=sound)
    assert by_seconds.usage is not None
    assert by_seconds.usage.type == "duration"
    assert by_seconds.usage.seconds == 3
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert client.audio.translations.create(model="whisper-1", file=sound).text


def test_transcriptions_as_a_stream(client: openai.OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(
            model="sim-transcribe", file=("a.wav", b"\0" * 32_000), stream=True
        )
    )
    last = events[-1]
    assert last.type == "transcript.text.done"
    assert last.usage is not None
    assert last.usage.output_tokens == len(events) - 1


def test_speech_is_silence_in_chunks(client: openai.OpenAI) -> None:
    sound = client.audio.speech.create(
        model="sim-speech", voice="alloy", input="hello", response_format="wav"
    )
    assert sound.response.headers["content-type"] == "audio/wav"
    content = sound.read()
    assert content.startswith(b"RIFF")
    assert b"simulated silence" in content
    assert len(content) == 16_384


def test_images(client: openai.OpenAI) -> None:
    made = client.images.generate(model="sim-image", prompt="a cat", n=2)
    assert made.data is not None
    assert len(made.data) == 2
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (2, 32)
    events = list(client.images.generate(model="sim-image", prompt="a cat", stream=True))
    assert events[-1].type == "image_generation.completed"
    edited = client.images.edit(model="sim-image", prompt="a dog", image=("a.png", b"png"))
    assert edited.data


def test_files(client: openai.OpenAI) -> None:
    made = client.files.create(file=("notes.jsonl", b'{"a": 1}\n'), purpose="batch")
    assert (made.filename, made.bytes) == ("notes.jsonl", 9)
    assert made.id in [file.id for file in client.files.list(purpose="batch", limit=1)]
    assert client.files.retrieve(made.id).purpose == "batch"
    assert client.files.content(made.id).read() == b'{"a": 1}\n'
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_lists_come_in_pages(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose="evals").id for n in range(5)]
    listed = client.files.list(purpose="evals", limit=2, order="asc")
    assert listed.has_next_page()
    assert [file.id for file in listed] == made


def test_uploads_in_parts(client: openai.OpenAI) -> None:
    begun = client.uploads.create(
        bytes=6, filename="a.txt", mime_type="text/plain", purpose="assistants"
    )
    parts = [client.uploads.parts.create(begun.id, data=data).id for data in (b"abc", b"def")]
    done = client.uploads.complete(begun.id, part_ids=parts)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abcdef"
    other = client.uploads.create(
        bytes=6, filename="b.txt", mime_type="text/plain", purpose="assistants"
    )
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_batches(client: openai.OpenAI) -> None:
    made = client.batches.create(
        input_file_id="file-1", endpoint="/v1/embeddings", completion_window="24h"
    )
    assert client.batches.retrieve(made.id).status == "validating"
    assert client.batches.cancel(made.id).status == "cancelling"
    assert made.id in [batch.id for batch in client.batches.list(limit=5)]


def test_vector_stores(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="notes")
    assert client.vector_stores.update(store.id, name="other").name == "other"
    client.vector_stores.files.create(store.id, file_id="file-1")
    client.vector_stores.file_batches.create(store.id, file_ids=["file-2", "file-3"])
    files = client.vector_stores.files.list(store.id, limit=2, order="asc")
    assert [file.id for file in files] == ["file-1", "file-2", "file-3"]
    found = client.vector_stores.search(store.id, query="x")
    assert [hit.score for hit in found] == [0.5]
    client.vector_stores.files.delete("file-2", vector_store_id=store.id)
    assert store.id in [found.id for found in client.vector_stores.list()]
    assert client.vector_stores.delete(store.id).deleted


def test_what_is_unknown_is_echoed(client: openai.OpenAI) -> None:
    found = client.post("/fine_tuning/jobs?x=%20", body={"a": 1}, cast_to=object)
    assert isinstance(found, dict)
    assert found["method"] == "POST"
    assert found["target"] == "/v1/fine_tuning/jobs?x=%20"
    assert found["body_sha256"] == hashlib.sha256(b'{"a":1}').hexdigest()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (498, openai.APIStatusError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_statuses_become_the_packages_errors(
    client: openai.OpenAI, status: int, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(
            model=f"m?status={status}&retry-after=7&code=own", messages=QUESTION
        )
    assert caught.value.status_code == status
    assert caught.value.code == "own"
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.request_id


def test_an_error_event_is_raised_in_the_middle_of_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="m?error-event=3", messages=QUESTION, stream=True)
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="simulated error"):
        seen.extend(stream)
    assert len(seen) == 3


def test_what_is_missing_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.post("/chat/completions", body={"model": "m"}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="x-sim has no instruction"):
        client.chat.completions.create(model="m?stutus=1", messages=QUESTION)
