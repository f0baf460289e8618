"""Everything but chat that the real `openai` package can ask for, with its base at both addresses.

`/v1` is routed by model (what has none goes to the catch-all's provider), `/openai/v1` goes to
that provider byte for byte; the package must not be able to tell either from the provider.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

MODEL = "gpt-6-luna"
SECOND_OF_SOUND = b"\0\1" * 16_000
PROVIDERS = {"/v1": "openai", "/openai/v1": "openai"}


@pytest.fixture(params=PROVIDERS)
def base(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def client(gateway: Gateway, key: str, base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}{base}", api_key=key, max_retries=0) as made:
        yield made


def test_chat_in_one_piece_and_as_a_stream(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "how are you"}]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_old_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="one two three")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    events = list(client.completions.create(model=MODEL, prompt="one", stream=True))
    assert "".join(event.choices[0].text for event in events).startswith("This is a simulated")
    assert all(event.usage is None for event in events)


def test_embeddings_in_numbers_and_in_base64(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model=MODEL, input="one two")
    plain = client.embeddings.create(
        model=MODEL, input=["one two", "three"], encoding_format="float"
    )
    assert short.data[0].embedding == plain.data[0].embedding
    assert plain.usage.prompt_tokens == 3


def test_responses_are_made_read_cancelled_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="how are you")
    assert "simulated" in made.output_text
    assert made.usage is not None
    assert made.usage.input_tokens == 3
    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert client.responses.input_items.list(made.id, limit=1, order="asc").object == "list"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_responses_as_typed_events(client: openai.OpenAI) -> None:
    kinds = [e.type for e in client.responses.create(model=MODEL, input="hello", stream=True)]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    with client.responses.stream(model=MODEL, input="hello") as stream:
        final = stream.get_final_response()
    assert final.usage is not None
    assert final.usage.output_tokens == kinds.count("response.output_text.delta")


def test_a_transcription_is_metered(
    client: openai.OpenAI, gateway: Gateway, simulator: Simulator, base: str
) -> None:
    sound = ("talk.wav", SECOND_OF_SOUND * 3)
    raw = client.audio.transcriptions.with_raw_response.create(model=MODEL, file=sound)
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.type == "tokens"
    line = gateway.log_line(raw.headers["x-request-id"])
    assert (line["model"], line["provider"]) == (MODEL, PROVIDERS[base])
    assert (line["prompt_tokens"], line["completion_tokens"]) == (
        answer.usage.input_tokens,
        answer.usage.output_tokens,
    )


def test_transcriptions_and_translations_of_every_form(client: openai.OpenAI) -> None:
    sound = ("talk.wav", SECOND_OF_SOUND)
    text: Any = client.audio.transcriptions.create(
        model=MODEL, file=sound, response_format="text", language="en", temperature=0.2
    )
    assert "simulated" in text
    verbose = client.audio.transcriptions.create(
        model="gpt-whisper",
        file=sound,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert verbose.duration == 1
    with pytest.deprecated_call():
        assert client.audio.translations.create(model="gpt-whisper", file=sound).text
    events = list(client.audio.transcriptions.create(model=MODEL, file=sound, stream=True))
    assert events[-1].type == "transcript.text.done"


def test_speech_comes_as_binary_pieces(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "voice": "alloy", "input": "hello", "response_format": "wav"}
    sound = client.audio.speech.create(**asked).read()
    assert sound.startswith(b"RIFF")
    with client.audio.speech.with_streaming_response.create(
        **asked, extra_headers={"x-sim": "gap=0.01"}
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        pieces = list(answer.iter_bytes())
    assert b"".join(pieces) == sound
    assert len(pieces) > 1
    events = client.post(
        "/audio/speech",
        body={**asked, "stream_format": "sse"},
        stream=True,
        stream_cls=openai.Stream[object],
        cast_to=object,
    )
    assert [event["type"] for event in events][-1] == "speech.audio.done"  # type: ignore[index]


def test_images_are_made_streamed_edited_and_varied(client: openai.OpenAI) -> None:
    made = client.images.generate(model=MODEL, prompt="a cat", n=2)
    assert made.data is not None
    assert len(made.data) == 2
    events = list(client.images.generate(model=MODEL, prompt="a cat", stream=True))
    assert events[-1].type == "image_generation.completed"
    picture = ("a.png", b"\x89PNG" + bytes(range(256)))
    assert client.images.edit(model=MODEL, prompt="a dog", image=[picture, picture]).data
    with pytest.deprecated_call():
        assert client.images.create_variation(model=MODEL, image=picture).data


def test_files_are_uploaded_listed_read_and_deleted(client: openai.OpenAI) -> None:
    content = bytes(range(256)) * 5 + b"\r\n--not-the-boundary\r\n"
    made = client.files.create(file=("notes ünïcode.jsonl", content), purpose="batch")
    assert made.bytes == len(content)
    assert made.id in [file.id for file in client.files.list(purpose="batch", limit=1)]
    assert client.files.retrieve(made.id).purpose == "batch"
    assert client.files.content(made.id).read() == content
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_lists_come_in_pages_by_their_query_parameters(client: openai.OpenAI) -> None:
    purpose: Any = "evals"
    made = [client.files.create(file=(f"{n}", b"x"), purpose=purpose).id for n in range(5)]
    listed = client.files.list(purpose=purpose, limit=2, order="asc", after=made[0])
    assert [file.id for file in listed.data] == made[1:3]
    assert listed.has_next_page()
    assert [file.id for file in listed] == made[1:]
    for name in made:
        client.files.delete(name)


def test_an_upload_in_parts_becomes_a_file(client: openai.OpenAI) -> None:
    about: Any = {"filename": "a.txt", "mime_type": "text/plain", "purpose": "assistants"}
    begun = client.uploads.create(bytes=6, **about)
    parts = [client.uploads.parts.create(begun.id, data=data).id for data in (b"abc", b"def")]
    done = client.uploads.complete(begun.id, part_ids=parts)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abcdef"
    other = client.uploads.create(bytes=6, **about)
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_a_file_is_uploaded_in_chunks_by_the_packages_own_helper(client: openai.OpenAI) -> None:
    content = bytes(range(251)) * 100
    done = client.uploads.upload_file_chunked(
        file=content,
        filename="big.bin",
        bytes=len(content),
        mime_type="application/octet-stream",
        purpose="assistants",
        part_size=10_000,
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content


def test_responses_in_the_background(client: openai.OpenAI) -> None:
    first, second, third = (
        client.responses.create(model=MODEL, input="a long tale", background=True) for _ in range(3)
    )
    assert first.status == "queued"
    statuses = [client.responses.retrieve(first.id).status for _ in range(3)]
    assert statuses == ["in_progress", "in_progress", "completed"]
    events = list(client.responses.retrieve(second.id, stream=True, starting_after=1))
    assert (events[0].sequence_number, events[-1].type) == (2, "response.completed")
    assert client.responses.cancel(third.id).status == "cancelled"


def test_batches(client: openai.OpenAI) -> None:
    made = client.batches.create(
        input_file_id="file-1", endpoint="/v1/embeddings", completion_window="24h"
    )
    assert client.batches.retrieve(made.id).status == "validating"
    assert client.batches.cancel(made.id).status == "cancelling"
    assert made.id in [batch.id for batch in client.batches.list(limit=5)]


def test_models(client: openai.OpenAI) -> None:
    assert "sim-model" in [model.id for model in client.models.list()]
    assert client.models.retrieve("sim-model").owned_by == "simulator"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing-model")


def test_moderations_with_and_without_a_model(client: openai.OpenAI) -> None:
    assert not client.moderations.create(input="x").results[0].flagged
    assert client.moderations.create(model=MODEL, input=["a", "b"]).results[1].flagged is False


def test_vector_stores_with_their_files_pages_and_search(client: openai.OpenAI) -> None:
    stores = client.vector_stores
    store = stores.create(name="notes", metadata={"a": "b"})
    assert stores.update(store.id, name="other").name == "other"
    stores.files.create(store.id, file_id="file-1")
    stores.file_batches.create(store.id, file_ids=["file-2", "file-3"])
    files = stores.files.list(store.id, limit=2, order="asc")
    assert [file.id for file in files] == ["file-1", "file-2", "file-3"]
    assert next(iter(stores.search(store.id, query="x", max_num_results=3))).score == 0.5
    stores.files.delete("file-2", vector_store_id=store.id)
    assert store.id in [found.id for found in stores.list(limit=100)]
    assert stores.delete(store.id).deleted


def test_what_the_package_does_not_know_yet_passes_too(client: openai.OpenAI, base: str) -> None:
    told: Any = client.post("/brand/new?x=%20&y=a+b", body={"a": [1, None]}, cast_to=object)
    provider_base = "/v1" if base == "/openai/v1" else "/openai/v1"  # the catch-all is groq
    assert (told["method"], told["target"]) == ("POST", provider_base + "/brand/new?x=%20&y=a+b")
    assert told["body_sha256"] == hashlib.sha256(b'{"a":[1,null]}').hexdigest()


def test_raw_and_streaming_responses_show_the_providers_headers(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(
        model=MODEL, input="x", extra_headers={"x-sim": "set=x-anything: of the provider"}
    )
    assert raw.headers["x-anything"] == "of the provider"
    assert raw.headers["x-ratelimit-limit-requests"]
    assert raw.headers["x-wrapper-provider"] == "openai"
    assert raw.request_id
    assert raw.parse().data
    with client.responses.with_streaming_response.create(
        model=MODEL, input="hello", stream=True
    ) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert lines[-1] == "event: response.completed"


def test_a_providers_refusal_is_the_packages_own_exception(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.embeddings.create(
            model=MODEL, input="x", extra_headers={"x-sim": "status=422; code=own; message=told"}
        )
    assert caught.value.code == "own"
    assert "told" in caught.value.message


def test_the_async_client_works_too(gateway: Gateway, key: str, base: str) -> None:
    async def ask() -> list[int]:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}{base}", api_key=key, max_retries=0
        ) as client:
            made = await asyncio.gather(
                *(client.embeddings.create(model=MODEL, input="a " * n) for n in range(1, 9))
            )
            sound = io.BytesIO(SECOND_OF_SOUND)
            sound.name = "talk.wav"
            heard = await client.audio.transcriptions.create(model=MODEL, file=sound)
            assert "simulated" in heard.text
            return [answer.usage.prompt_tokens for answer in made]

    assert asyncio.run(ask()) == list(range(1, 9))
