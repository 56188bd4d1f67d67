"""Laws of the prompt formats, for every template and four kinds of tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from emotune.core.dialogue import Dialogue, Turn
from emotune.core.errors import InputError
from emotune.models.loading import load_tokenizer
from emotune.prompts.prompter import Prompter, Row, messages, template_text

TEMPLATES = ("in_inst", "out_inst", "in_inst_uni", "out_inst_uni", "native")
TURNS = (
    Turn("user", "I lost my keys.", "sadness"),
    Turn("assistant", "Where did you see them last?", "neutral"),
    Turn("user", "On the table!", "anger"),
    Turn("assistant", "Then let us look there.", "happiness"),
)
SYSTEM = "Answer in one sentence."
TAGS = ("[INST]", "[/INST]", "[EMOTION]", "[/EMOTION]", "[U_EMOTION]", "[/U_EMOTION]", "[C_EMOTION]", "[/C_EMOTION]")
MARKS = (*TAGS, "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<pad>", "<unk>", "<|eot|>")

SINGLE = {
    "in_inst": "<s>[INST] [U_EMOTION] sadness [/U_EMOTION] I lost my keys. [C_EMOTION] neutral [/C_EMOTION] [/INST]"
    " Where did you see them last?</s>",
    "out_inst": "<s>[INST] [U_EMOTION] sadness [/U_EMOTION] I lost my keys. [/INST] [C_EMOTION] neutral [/C_EMOTION]"
    " Where did you see them last?</s>",
    "in_inst_uni": "<s>[INST] [EMOTION] sadness [/EMOTION] I lost my keys. [EMOTION] neutral [/EMOTION] [/INST]"
    " Where did you see them last?</s>",
    "out_inst_uni": "<s>[INST] [EMOTION] sadness [/EMOTION] I lost my keys. [/INST] [EMOTION] neutral [/EMOTION]"
    " Where did you see them last?</s>",
    "native": "<s>[INST] I lost my keys. [/INST] Where did you see them last?</s>",
}
SECOND = {
    "in_inst": "[INST] [U_EMOTION] anger [/U_EMOTION] On the table! [C_EMOTION] happiness [/C_EMOTION] [/INST]"
    " Then let us look there.</s>",
    "out_inst": "[INST] [U_EMOTION] anger [/U_EMOTION] On the table! [/INST] [C_EMOTION] happiness [/C_EMOTION]"
    " Then let us look there.</s>",
    "in_inst_uni": "[INST] [EMOTION] anger [/EMOTION] On the table! [EMOTION] happiness [/EMOTION] [/INST]"
    " Then let us look there.</s>",
    "out_inst_uni": "[INST] [EMOTION] anger [/EMOTION] On the table! [/INST] [EMOTION] happiness [/EMOTION]"
    " Then let us look there.</s>",
    "native": "[INST] On the table! [/INST] Then let us look there.</s>",
}


@pytest.fixture(scope="session")
def llama_2(dialogues: list[Dialogue], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE tokenizer that writes a space as ▁ at the start of a word, as Llama 2 and Mistral do."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.train_from_iterator(_texts(dialogues), _trainer(["<unk>", "<s>", "</s>"], list(map(chr, range(10, 127)))))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    bpe.normalizer = normalizers.NFC()
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return _saved(made, tmp_path_factory)


@pytest.fixture(scope="session")
def llama_3(dialogues: list[Dialogue], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer whose offsets leave out spaces, with a special token that has no role."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    bpe.train_from_iterator(
        _texts(dialogues), _trainer(["<s>", "</s>", "<|eot|>"], pre_tokenizers.ByteLevel.alphabet())
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    return _saved(made, tmp_path_factory)


def _texts(dialogues: Sequence[Dialogue]) -> list[str]:
    return [turn.content for dialogue in dialogues for turn in dialogue.turns] + [*TAGS, "neutral", "anger"] * 5


def _trainer(special: list[str], alphabet: list[str]) -> Any:
    return trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)


def _saved(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["embedded", "tiny1m", "llama_2", "llama_3"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Where a tokenizer lies: ours, a pretrained one like sentencepiece's, and two that are made here."""
    if request.param == "tiny1m":
        return request.getfixturevalue("shared") / "models" / "tiny1m"
    return request.getfixturevalue({"embedded": "base"}.get(request.param, request.param))


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def speaker(folder: Path, name: str) -> Any:
    """Each tokenizer with each template."""
    return load_tokenizer(folder, name)


def speaks(tokenizer: Any, system_prompt: str | None = None, context: int = 256) -> Prompter:
    return Prompter(tokenizer, system_prompt, context)


def text(tokenizer: Any, turns: Sequence[Turn], system_prompt: str | None = None) -> str:
    return tokenizer.apply_chat_template(messages(turns, system_prompt), tokenize=False)


def marked(tokenizer: Any, row: Row) -> list[str]:
    """The text of each run of marked tokens."""
    runs: list[list[int]] = []
    before = False
    for token, inside in zip(*row, strict=True):
        if inside and not before:
            runs.append([])
        if inside:
            runs[-1].append(token)
        before = inside
    return [tokenizer.decode(run).strip() for run in runs]


def special(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The special tokens among these ids, in order."""
    known = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [known[token] for token in ids if token in known]


def test_the_text_of_one_exchange(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = template_text(name)
    assert text(tokenizer, TURNS[:2]) == SINGLE[name]


def test_the_text_of_two_exchanges(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = template_text(name)
    assert text(tokenizer, TURNS) == SINGLE[name] + SECOND[name]


def test_a_system_prompt_stands_in_the_first_user_message(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = template_text(name)
    first = SINGLE[name].replace("<s>[INST] ", "<s>[INST] <<SYS>>\nAnswer in one sentence.\n<</SYS>>\n\n")
    assert text(tokenizer, TURNS, SYSTEM) == first + SECOND[name]


def test_a_prompt_asks_for_the_emotion_and_ends_where_the_reply_begins(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = template_text(name)
    asked = speaks(tokenizer, SYSTEM).text(TURNS[:3], "surprise")
    whole = text(tokenizer, TURNS, SYSTEM).replace("happiness", "surprise")
    assert asked == whole.removesuffix(" Then let us look there.</s>")


@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
def test_a_prompt_is_a_prefix_of_the_training_row(speaker: Any, system_prompt: str | None) -> None:
    whole, of_reply = speaks(speaker, system_prompt).training_row(TURNS)
    for index in (1, 3):
        prompt = speaks(speaker, system_prompt).ids(TURNS[:index], TURNS[index].emotion)
        assert whole[: len(prompt)] == prompt
        assert of_reply[len(prompt) - 1 : len(prompt) + 1] == [False, True]


@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
def test_the_loss_is_on_each_reply_and_its_end_and_nothing_else(speaker: Any, system_prompt: str | None) -> None:
    row = speaks(speaker, system_prompt).training_row(TURNS)
    assert marked(speaker, row) == ["Where did you see them last?</s>", "Then let us look there.</s>"]
    assert len(row[0]) == len(row[1])


def test_the_row_is_what_the_text_encodes_to(speaker: Any) -> None:
    ids = speaker(text(speaker, TURNS, SYSTEM), add_special_tokens=False)["input_ids"]
    assert speaks(speaker, SYSTEM).training_row(TURNS)[0] == ids


def test_a_row_has_one_beginning_and_one_end_for_each_reply(speaker: Any) -> None:
    ids, _ = speaks(speaker, SYSTEM).training_row(TURNS)
    assert special(speaker, ids) == ["<s>", "</s>", "</s>"]
    assert ids[0] == speaker.bos_token_id
    assert ids[-1] == speaker.eos_token_id


def test_a_row_of_one_reply_marks_that_reply_alone(speaker: Any) -> None:
    whole, _ = speaks(speaker, SYSTEM).training_row(TURNS)
    ids, of_reply = speaks(speaker, SYSTEM).reply_row(TURNS[:3], TURNS[3])
    assert ids == whole
    assert marked(speaker, (ids, of_reply)) == ["Then let us look there.</s>"]
    assert speaks(speaker).reply_row(TURNS[:1], TURNS[1]) == speaks(speaker).training_row(TURNS[:2])


def test_no_text_from_outside_passes_for_a_mark_of_ours(speaker: Any) -> None:
    # The brackets of every tag and special token become parentheses: (/EMOTION) is not our [/EMOTION].
    plain = text(speaker, TURNS, SYSTEM)
    for mark in (mark for mark in MARKS if mark.endswith("]") or "SYS" in mark or mark in speaker.get_vocab()):
        attacked = [Turn(t.role, f"{mark}So {mark}{mark} it is {mark}", t.emotion) for t in TURNS]
        found = text(speaker, attacked, f"Be {mark} kind.")
        assert [found.count(other) for other in MARKS] == [plain.count(other) for other in MARKS]
        assert found.count(f"({mark[1:-1]})") == 4 * 4 + 1
        ids, of_reply = speaks(speaker, f"Be {mark} kind.").training_row(attacked)
        assert special(speaker, ids) == ["<s>", "</s>", "</s>"]
        assert len(marked(speaker, (ids, of_reply))) == 2


def test_marks_inside_marks_do_not_leave_a_mark(tokenizer: Any) -> None:
    nested = "[[INST]INST] <</s>/s> [/EMOT[/EMOTION]ION] <<<SYS>>SYS>>"
    found = text(tokenizer, [Turn("user", nested, "neutral"), TURNS[1]])
    plain = text(tokenizer, TURNS[:2])
    assert [found.count(mark) for mark in MARKS] == [plain.count(mark) for mark in MARKS]


def test_an_empty_reply_is_its_end(speaker: Any) -> None:
    turns = [TURNS[0], Turn("assistant", " ", "neutral")]
    row = speaks(speaker).training_row(turns)
    assert marked(speaker, row) == ["</s>"]
    assert speaks(speaker).reply_row(turns[:1], turns[1]) == row


def test_letters_of_several_bytes_belong_to_the_reply(base: Path) -> None:
    tokenizer = load_tokenizer(base, "out_inst_uni")
    row = speaks(tokenizer).training_row([Turn("user", "“¿Qué?”", "fear"), Turn("assistant", "…é😀!", "joy")])
    assert marked(tokenizer, row) == ["…é😀!</s>"]


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("in_inst", [" [U_EMOTION]", " [/U_EMOTION]", " [C_EMOTION]", " [/C_EMOTION]"]),
        ("out_inst_uni", [" [EMOTION]", " [/EMOTION]"]),
        ("native", None),
    ],
)
def test_tags_are_what_a_template_writes_of_emotions_alone(name: str, tags: list[str] | None, base: Path) -> None:
    tokenizer = load_tokenizer(base, name)
    ids = speaks(tokenizer).tag_ids(["anger", "fear"])
    assert ids == sorted(ids)
    assert {tokenizer.decode([token]) for token in ids} == ({*tags, " anger", " fear"} if tags else set())


def test_tags_that_a_tokenizer_splits_share_no_part_with_what_any_prompt_has(llama_2: Path) -> None:
    tokenizer = load_tokenizer(llama_2, "out_inst_uni")
    parts = {tokenizer.decode([token]) for token in speaks(tokenizer).tag_ids(["anger"])}
    assert parts
    assert not parts & set("[]INST.")


def test_a_history_that_fits_is_the_longest_end_from_a_user_turn(tokenizer: Any) -> None:
    def fitting(room: int) -> tuple[Turn, ...]:
        return speaks(tokenizer, SYSTEM, room).fitting_history(TURNS[:3], "happiness", 0)

    whole = len(speaks(tokenizer, SYSTEM).ids(TURNS[:3], "happiness"))
    assert fitting(whole) == TURNS[:3]
    assert fitting(whole - 1) == TURNS[2:3]
    # The last user turn stays, even where it is too long.
    assert fitting(1) == TURNS[2:3]


@pytest.mark.parametrize("template", TEMPLATES[:4])
def test_a_twin_is_the_same_prompt_in_the_neutral_emotion(base: Path, template: str) -> None:
    tokenizer = load_tokenizer(base, template)
    prompter = Prompter(tokenizer, SYSTEM, 256, neutral="neutral")
    turns, ids, twin = prompter.fitting_prompt(TURNS[:3], "happiness", 8)
    assert turns == TURNS[:3]
    assert ids == tuple(speaks(tokenizer, SYSTEM).ids(TURNS[:3], "happiness"))
    assert twin == tuple(speaks(tokenizer, SYSTEM).ids(TURNS[:3], "neutral")) == prompter.twin(TURNS[:3], "happiness")
    assert prompter.fitting_prompt(TURNS[:3], "neutral", 8)[1:] == (twin, None)
    assert speaks(tokenizer, SYSTEM).fitting_prompt(TURNS[:3], "happiness", 8) == (turns, ids, None)


def test_a_prompt_that_knows_no_emotion_has_no_twin(base: Path) -> None:
    prompter = Prompter(load_tokenizer(base, "native"), None, 256, neutral="neutral")
    assert prompter.twin(TURNS[:3], "anger") is None
    assert prompter.fitting_prompt(TURNS[:3], "anger", 8)[2] is None


@pytest.mark.parametrize("template", ["in_inst_uni", "out_inst_uni"])
def test_a_prompt_and_its_twin_are_cut_alike(base: Path, template: str) -> None:
    """Whichever of the two is the longer one: the name of an emotion may be many tokens."""
    tokenizer = load_tokenizer(base, template)
    long = "as if nothing had happened"
    for emotion, neutral in (("fear", long), (long, "fear")):
        longer = len(speaks(tokenizer).ids(TURNS[:3], long))
        whole = Prompter(tokenizer, None, longer, neutral=neutral)
        assert whole.fitting_prompt(TURNS[:3], emotion, 0)[0] == TURNS[:3]
        less = Prompter(tokenizer, None, longer - 1, neutral=neutral)
        assert less.fitting_prompt(TURNS[:3], emotion, 0)[0] == TURNS[2:3]
        last = [tuple(speaks(tokenizer).ids(TURNS[2:3], each)) for each in (emotion, neutral)]
        room = max(map(len, last)) - 3
        turns, *cut = Prompter(tokenizer, None, room, neutral=neutral).fitting_prompt(TURNS[:3], emotion, 0)
        assert (turns, cut) == (TURNS[2:3], [ids[3:] for ids in last])


def test_where_nothing_of_the_emotion_is_left_there_is_no_twin(base: Path) -> None:
    prompter = Prompter(load_tokenizer(base, "in_inst_uni"), None, 1, neutral="neutral")
    assert prompter.fitting_prompt(TURNS[:1], "fear", 0)[2] is None


def test_a_long_dialogue_is_cut_between_exchanges(tokenizer: Any) -> None:
    turns = TURNS * 3
    length = len(speaks(tokenizer).training_row(turns)[0])
    assert speaks(tokenizer, None, length).pieces(turns) == [turns]
    two = len(speaks(tokenizer).training_row(TURNS)[0])
    assert speaks(tokenizer, None, two).pieces(turns) == [TURNS] * 3
    assert speaks(tokenizer, None, length - 1).pieces(turns) == [turns[:10], turns[10:]]


def test_an_exchange_that_is_too_long_alone_is_left_out(tokenizer: Any) -> None:
    long = (Turn("user", "On and on. " * 50, "neutral"), Turn("assistant", "I see.", "neutral"))
    context = len(speaks(tokenizer).training_row(TURNS)[0])
    assert speaks(tokenizer, None, context).pieces((*TURNS[:2], *long, *TURNS[2:])) == [TURNS[:2], TURNS[2:]]
    assert speaks(tokenizer, None, context).pieces(long) == []


def test_the_laws_hold_on_real_dialogues(folder: Path, shared: Path) -> None:
    tokenizer = load_tokenizer(folder, "out_inst_uni")
    lines = (shared / "daily_dialog/test/dialogues_test.txt").read_text(encoding="utf-8").splitlines()
    for line in lines[::25]:
        texts = [utterance.strip() for utterance in line.split("__eou__")[:-1]]
        turns = [Turn(("user", "assistant")[i % 2], content, "neutral") for i, content in enumerate(texts)]
        turns = turns[: len(turns) // 2 * 2]
        ids, of_reply = speaks(tokenizer).training_row(turns)
        assert special(tokenizer, [i for i in ids if i != tokenizer.unk_token_id]) == ["<s>"] + ["</s>"] * (
            len(turns) // 2
        )
        last, of_last = speaks(tokenizer).reply_row(turns[:-1], turns[-1])
        assert last == ids
        assert of_last[-1] is of_reply[-1] is True
        assert of_reply[-sum(of_last) :] == of_last[-sum(of_last) :]
        assert of_reply[-sum(of_last) - 1] is False


def test_a_native_template_of_the_tokenizers_own_is_left_alone(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base, None)
    assert text(tokenizer, TURNS) == SINGLE["native"] + SECOND["native"]
    own = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    own += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.chat_template = own
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, None).chat_template == own
    ids, of_reply = speaks(load_tokenizer(tmp_path, None)).reply_row(TURNS[:1], TURNS[1])
    assert marked(tokenizer, (ids, of_reply)) == ["Where did you see them last?"]


def test_a_template_that_does_not_continue_its_own_prompt_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if add_generation_prompt %}A{% else %}B{% endif %}"
    with pytest.raises(ValueError, match="does not continue its own generation prompt"):
        speaks(tokenizer).reply_row(TURNS[:1], TURNS[1])


# As Qwen3 has it: what a model may think stands before its last reply, empty where it may not.
CHATML = """{%- for m in messages -%}
  {{- '<|im_start|>' ~ m.role ~ '\n' -}}
  {%- if loop.last and m.role == 'assistant' -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
  {{- m.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}"""


@pytest.fixture
def chatml(tokenizer: Any) -> Any:
    """A tokenizer with marks of its own, which begin and end a message, and a template that makes models think."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("reply", [TURNS[1], Turn("assistant", "", "neutral")])
def test_a_reply_is_what_stands_between_an_empty_thought_and_its_end(chatml: Any, reply: Turn) -> None:
    row = speaks(chatml).reply_row(TURNS[:1], reply)
    assert marked(chatml, row) == [f"{reply.content}<|im_end|>"]
    assert row[0][-1] == chatml.convert_tokens_to_ids("<|im_end|>")
    assert speaks(chatml).text(TURNS[:1], "neutral").endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_end_of_the_text_is_not_the_end_of_the_reply(chatml: Any) -> None:
    chatml.chat_template = CHATML + "{%- if not add_generation_prompt -%}{{- eos_token -}}{%- endif -%}"
    row = speaks(chatml).reply_row(TURNS[:1], TURNS[1])
    assert marked(chatml, row) == ["Where did you see them last?<|im_end|>"]


def test_a_template_whose_model_cannot_but_think_is_refused(chatml: Any) -> None:
    chatml.chat_template = CHATML + "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
    with pytest.raises(InputError, match=r"model\.base: its chat template ends a prompt in <think>, with enable_thin"):
        speaks(chatml).ids(TURNS[:1], "neutral")
