"""The instruction template: what is prompt, what is scored, and that chat asks in the same ids."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from corpora.document import Document, ImageSegment, Segment, TextSegment, Turn
from corpora.reader import Corpus
from mllm.hf.image_processing_mllm import MllmImageProcessor
from mllm.hf.processing_mllm import MllmProcessor
from mllm.hf.tokenization_mllm import MllmTokenizer
from mllm.images import normalise
from mllm.model.attention import Documents
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from mllm.objectives import LanguageModelling
from mllm.stream import encode as encoding
from mllm.stream import measure
from mllm.stream.batch import Batch
from mllm.stream.encode import encode, encoded_length, text_layout
from mllm.stream.measure import lengths_dir, open_lengths
from mllm.stream.source import Source
from mllm.stream.stream import TokenStream
from mllm.stream.template import END_OF_DOCUMENT, Part, Said, instruction_template
from tests.conftest import square, write_corpus
from tests.instructions import answers_of, instruction_documents
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, SLOT_ID

PICTURE = square("red").data
IMAGE = [BOI_ID, SLOT_ID, SLOT_ID, SLOT_ID, EOI_ID]


def conversation(*said: tuple[str, list[str | bytes]]) -> Document:
    """A document as a reader gives it: only the assistant's texts are scored."""
    segments: list[Segment] = []
    turns = []
    for role, items in said:
        turns.append(Turn(role, len(items)))
        segments += [
            ImageSegment(item)
            if isinstance(item, bytes)
            else TextSegment(item, is_scored=role == "assistant")
            for item in items
        ]
    return Document("k", tuple(segments), turns=tuple(turns))


TALK = conversation(
    ("system", ["Be brief."]),
    ("user", [PICTURE, "what is it?"]),
    ("assistant", [" a red square"]),
    ("user", ["\nand this", PICTURE, "here?"]),
    ("assistant", [" the same,", "twice"]),
)


def test_a_conversation_is_labelled_by_role_and_each_output_is_ended(world):
    encoded = world.tokenizer.encode
    sequence = encode(TALK, world.tokenizer, 3)
    expected = [
        ([BOS_ID], False),
        (encoded("System: Be brief."), False),
        (IMAGE, False),
        (encoded("\nInstruction: what is it?"), False),
        (encoded("\nOutput:"), False),
        (encoded(" a red square"), True),
        ([EOS_ID], True),
        (encoded("\nInstruction: and this"), False),
        (IMAGE, False),
        (encoded("here?"), False),
        (encoded("\nOutput:"), False),
        (encoded(" the same,"), True),
        (encoded("\ntwice"), True),
        ([EOS_ID], True),
    ]
    assert sequence.token_ids.tolist() == [i for ids, _ in expected for i in ids]
    assert sequence.is_scored.tolist() == [scored for ids, scored in expected for _ in ids]
    assert sequence.images == (PICTURE, PICTURE)
    assert len(sequence.token_ids) == encoded_length(TALK, world.tokenizer, 3)
    assert text_layout(TALK, world.tokenizer).scored_tokens == sequence.is_scored.sum()


@pytest.mark.parametrize(
    ("document", "text", "scored"),
    [
        (conversation(("user", ["hm?"])), "Instruction: hm?</s>", ""),
        (conversation(("assistant", ["hello"])), "Output: hello</s>", " hello</s>"),
        (conversation(("critic", ["no"])), "Critic: no</s>", ""),
        # A picture after the last output: what closes the document is no output's end.
        (
            conversation(("assistant", ["yes"]), ("user", [PICTURE])),
            "Output: yes</s><image></s>",
            " yes</s>",
        ),
        (
            conversation(("user", ["a"]), ("assistant", [" "]), ("tool", ["b "])),
            "Instruction: a\nInput: b</s>",
            "",
        ),
    ],
)
def test_odd_conversations(world, document, text, scored):
    sequence = encode(document, world.tokenizer, 3)
    assert shown(world, sequence.token_ids[1:]) == text
    assert shown(world, sequence.token_ids[sequence.is_scored]) == scored


def test_the_end_of_an_output_never_scores_the_next_image(world):
    document = conversation(
        ("user", ["a"]), ("assistant", ["b"]), ("user", [PICTURE, "c"]), ("assistant", ["d"])
    )
    sequence = encode(document, world.tokenizer, 3, score_image_start=True)
    assert not sequence.is_scored[sequence.token_ids == BOI_ID].any()


def test_only_what_a_segment_scores_of_an_output_is_scored(world):
    first = Said("assistant", [Part("old words", is_scored=False)])
    parts = instruction_template([Said("user", [Part("a", True)]), first])
    assert not any(part.is_scored for part in parts) and parts[-1].content is END_OF_DOCUMENT


def test_a_prompt_is_the_start_of_its_training_document(world):
    """What chat puts before an answer is, token by token, what stood before it in training."""
    asked = [Said("user", [Part("is it red?")])]
    prompt = instruction_template(asked, asks=True)
    answered = instruction_template([*asked, Said("assistant", [Part("yes", True)])])
    assert answered[: len(prompt)] == prompt
    assert answered[len(prompt) :] == [Part(" yes", True), Part(END_OF_DOCUMENT, True)]


# ------------------------------------------------------------------ chat and training are one


@pytest.fixture(scope="module")
def processor(world) -> MllmProcessor:
    return MllmProcessor(
        MllmImageProcessor(16, "squash"),
        MllmTokenizer(str(world.tokenizer.model_path)),
        num_latents=3,
        template="instruction",
    )


def messages_of(document: Document) -> list[dict]:
    messages, rest = [], iter(document.segments)
    for role, number in document.turns:
        content = [
            {"type": "text", "text": segment.text}
            if isinstance(segment, TextSegment)
            else {"type": "image", "image": segment.data}
            for segment in (next(rest) for _ in range(number))
        ]
        messages.append({"role": role, "content": content})
    return messages


@pytest.mark.parametrize(
    "document",
    [TALK, conversation(("assistant", ["yes"]), ("user", [PICTURE])), *instruction_documents(3)],
)
def test_chat_and_training_give_a_conversation_the_same_ids_and_targets(world, processor, document):
    sequence = encode(document, world.tokenizer, 3)
    batch = processor.apply_chat_template(messages_of(document), return_labels=True)
    assert batch["input_ids"][0].tolist() == sequence.token_ids.tolist()
    assert ((batch["labels"][0] != -100).numpy() == sequence.is_scored).all()


def test_chat_asks_with_what_precedes_an_answer_in_training(world, processor):
    sequence = encode(TALK, world.tokenizer, 3)
    messages = messages_of(TALK)
    asked = processor.apply_chat_template(messages[:-1])["input_ids"][0].tolist()
    assert sequence.token_ids.tolist()[: len(asked)] == asked
    assert sequence.is_scored[len(asked) :].all()
    # Words of an answer that are to go on are what training saw before the rest of it.
    begun = [*messages[:-1], {"role": "assistant", "content": "the same,"}]
    goes_on = processor.apply_chat_template(begun, continue_final_message=True)["input_ids"][0]
    assert sequence.token_ids.tolist()[: len(goes_on)] == goes_on.tolist()
    ended = processor.apply_chat_template(begun, add_generation_prompt=False)["input_ids"][0]
    assert ended.tolist() == [*goes_on.tolist(), EOS_ID]


# ------------------------------------------------------------------ in the stream


@pytest.fixture(scope="module")
def instructions(world, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("instruct") / "train", instruction_documents(30))


def new_stream(world, instructions: Path | None = None, **changes) -> TokenStream:
    sources = changes.pop("sources", None) or [Source("instruct", instructions, 1.0)]
    sizes = {"seq_len": 256, "num_latents": 4, "global_batch_size": 4, "seed": 1, "image_size": 16}
    return TokenStream(sources, world.tokenizer, **sizes | changes)


@pytest.fixture(scope="module")
def stream(world, instructions) -> TokenStream:
    return new_stream(world, instructions)


def test_measured_lengths_are_the_templates_and_plain_corpora_keep_theirs(
    world, instructions, tmp_path, monkeypatch
):
    corpus = Corpus(shutil.copytree(instructions, tmp_path / "instruct"))
    text = Corpus(shutil.copytree(world.text, tmp_path / "text"))
    lengths = open_lengths(corpus, world.tokenizer)
    for i in range(len(corpus)):
        length = len(encode(corpus.document(i), world.tokenizer, 4).token_ids)
        assert lengths.length(i, 4) == length
    plain, templated = lengths_dir(text, world.tokenizer), lengths_dir(corpus, world.tokenizer)
    assert plain.name.startswith("tokens-2-") and templated.name.startswith("tokens-2t1-")
    monkeypatch.setattr(measure, "TEMPLATE_VERSION", 2)
    assert lengths_dir(text, world.tokenizer) == plain
    assert not lengths_dir(corpus, world.tokenizer).exists()


def shown(world, token_ids) -> str:
    """Text in which `</s>` and `<image>` are visible."""
    marks = {EOS_ID: "</s>", BOI_ID: "<image>"}
    pieces, run = [], []
    for token in [*np.asarray(token_ids).tolist(), None]:
        if token is None or token in marks:
            pieces += [world.tokenizer.decode(run), marks.get(token, "")]
            run = []
        else:
            run.append(token)
    return "".join(pieces)


# ------------------------------------------------------------------ in the loss


def answer_targets(batch: Batch, corpus: Corpus, tokenizer) -> torch.Tensor:
    """bool (B, T): positions whose target belongs to an answer or is the `</s>` right after it.

    Found by reading the shards and looking for the answers in the rows; the template has no part
    in it. Documents must stand whole in their rows: those with a picture do.
    """
    found = torch.zeros_like(batch.loss_mask)
    for b, info in enumerate(batch.rows):
        for number, key in enumerate(info.samples):
            places = (batch.document_ids[b] == number).nonzero().flatten().tolist()
            ids = batch.token_ids[b, places].tolist()
            start = 0
            for answer in answers_of(corpus.document(corpus.keys.index(key))):
                wanted = [*tokenizer.encode(f" {answer}"), EOS_ID]
                start = next(
                    i for i in range(start, len(ids)) if ids[i : i + len(wanted)] == wanted
                )
                first = places[start] - 1  # the position before predicts it
                found[b, first : first + len(wanted)] = True
                start += len(wanted)
    return found


def loss_by_hand(
    objective: LanguageModelling, batch: Batch, is_answer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Torch's cross-entropy over all logits, and its gradient by logits, (B, T, V)."""
    model = objective.model
    hidden = model(
        batch.token_ids,
        batch.slot_mask,
        normalise(batch.pixels),
        batch.positions,
        num_images=batch.num_images,
        documents=Documents(batch.document_ids),
    )
    logits = model.head(hidden)
    logits.retain_grad()
    targets = batch.target_ids.masked_fill(~is_answer, -100)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return loss, logits.grad


def gradients_of(objective: LanguageModelling) -> dict[str, torch.Tensor]:
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    objective.zero_grad()
    return gradients


@pytest.fixture(scope="module")
def objective(world) -> LanguageModelling:
    vision = VisionConfig(
        image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2, mlp_dim=32
    )
    config = ModelConfig(
        vocab_size=world.tokenizer.vocab_size,
        seq_len=256,
        model_dim=32,
        num_layers=2,
        num_heads=2,
        ffn_dim=64,
        num_latents=4,
        dropout=0.0,
        attention_dropout=0.0,
        vision=vision,
    )
    return LanguageModelling(build(config, seed=0))


def assert_prompts_carry_no_gradient(
    stream: TokenStream, instructions: Path, objective: LanguageModelling
) -> None:
    corpus = Corpus(instructions)
    batch = stream.batch(0, rank=0, world_size=1, micro_batch_size=4)
    is_answer = answer_targets(batch, corpus, stream.tokenizer)
    assert 0 < is_answer.sum() < (batch.document_ids >= 0).sum() / 2

    loss, _ = objective(batch)
    loss.backward()
    ours = gradients_of(objective)
    by_hand, by_logits = loss_by_hand(objective, batch, is_answer)
    theirs = gradients_of(objective)
    # The loss is that function of the logits which does not feel a prompt's; so is its gradient.
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=0)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    assert not by_logits[~is_answer].any() and by_logits[is_answer].abs().amax(1).min() > 0

    # Whatever a prompt's targets are, the loss and every gradient stay as they were, to the bit.
    random = torch.randint_like(batch.target_ids, 16, stream.tokenizer.vocab_size)
    other = replace(batch, target_ids=torch.where(is_answer, batch.target_ids, random))
    changed, _ = objective(other)
    changed.backward()
    assert torch.equal(changed, loss)
    assert all(torch.equal(g, ours[name]) for name, g in gradients_of(objective).items())
    felt = replace(batch, target_ids=torch.where(is_answer, random, batch.target_ids))
    assert objective(felt)[0] != loss


def test_the_tokens_of_prompts_carry_no_gradient(stream, instructions, objective):
    assert_prompts_carry_no_gradient(stream, instructions, objective)


@pytest.mark.parametrize("fault", ["the prompt", "the label", "no end"])
def test_a_template_that_scores_otherwise_is_noticed(
    world, instructions, objective, monkeypatch, fault
):
    def faulty(turns, **settings):
        for part in instruction_template(turns, **settings):
            is_text = isinstance(part.content, str)
            if fault == "the prompt" and is_text and "Instruction:" in part.content:
                part = part._replace(is_scored=True)
            if fault == "the label" and part.content == "\nOutput:":
                part = part._replace(is_scored=True)
            if fault == "no end" and part.content is END_OF_DOCUMENT:
                part = part._replace(is_scored=False)
            yield part

    monkeypatch.setattr(encoding, "instruction_template", faulty)
    with pytest.raises(AssertionError):
        assert_prompts_carry_no_gradient(new_stream(world, instructions), instructions, objective)


def test_rows_are_shared_out_as_the_paper_tunes(world, instructions):
    """256 rows of instructions, 32 of text, 768 of pairs and 16 interleaved (K1 table 19)."""
    shares = {"instruct": 256, "text": 32, "pairs": 768, "interleaved": 16}
    folders = {"instruct": instructions} | {
        name: getattr(world, name) for name in ("text", "pairs", "interleaved")
    }
    sources = [Source(name, folders[name], shares[name]) for name in shares]
    stream = new_stream(world, sources=sources, global_batch_size=67, unit="rows")
    names = np.array(stream.source_names)
    counts = dict.fromkeys(shares, 0)
    for step in range(48):
        found = names[stream.rows(step).order.source_ids]
        for name, share in shares.items():
            counts[name] += int((found == name).sum())
            # Never a row or more away from its share.
            assert abs(counts[name] - (step + 1) * 67 * share / 1072) < 1
    assert counts == {name: 3 * share for name, share in shares.items()}
