"""Laws of loading and saving models: what params.yaml says happens, or one clear error does."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from conftest import contents
from emotune.core import records
from emotune.core.errors import InputError
from emotune.judges import hub
from emotune.models import loading, pins
from emotune.models.params import Model
from tiny import tied, with_tags

CHOICE = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)


def choice(**changes: Any) -> Model:
    return Model.model_validate(CHOICE.model_dump() | changes)


@pytest.fixture
def adapted(base: Path, tokenizer: Any) -> Any:
    """The tiny model under an adapter, LoRA and tags, that changes what it says."""
    torch.manual_seed(7)
    return with_tags(base, tokenizer, r=4, init_lora_weights=False).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    # All tokens there are, those of tags too.
    return model(input_ids=torch.arange(model.config.vocab_size)[: 4 * 90].view(4, 90)).logits


# --- what pins a base model


def test_a_local_folder_is_pinned_by_its_content(base: Path) -> None:
    pin = pins.folder_revision(base)
    assert pins.resolve(str(base), pin) == {
        "name": str(base),
        "revision": pin,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.iterdir()},
    }


@pytest.mark.parametrize("revision", [None, "0" * 64])
def test_a_wrong_pin_is_told_with_the_one_that_was_found(base: Path, revision: str | None) -> None:
    found = (
        f"model.revision must pin the content of {base}, .* found sha256 {pins.folder_revision(base)}, .* {revision}"
    )
    with pytest.raises(InputError, match=found):
        pins.resolve(str(base), revision)


def test_the_pin_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    revisions = [pins.folder_revision(tmp_path)]
    (tmp_path / "config.json").write_text("{ }")
    revisions.append(pins.folder_revision(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "config.jso")
    revisions.append(pins.folder_revision(tmp_path))
    assert len(set(revisions)) == 3


@pytest.mark.parametrize("name", ["./gone", "/gone", "~/gone", "gone", "a/b/c"])
def test_a_folder_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(
        InputError, match=r"model\.base: no such folder .*(gone|a/b/c); accepted: embedded, scratch, a local folder"
    ):
        pins.resolve(name, None)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json: it is not a saved transformers model"):
        pins.resolve(str(tmp_path), None)


@pytest.mark.parametrize("revision", [None, "main", "0" * 39, "0" * 39 + "G"])
def test_a_hub_name_needs_a_commit(revision: str | None) -> None:
    with pytest.raises(InputError, match=rf"must be a 40-digit commit of owner/model on the Hub, .* got {revision}$"):
        pins.resolve("owner/model", revision)


def test_a_hub_name_with_a_commit_is_its_own_pin() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    assert pins.resolve("owner/model", commit) == {"name": "owner/model", "revision": commit, "files": {}}


def test_a_relative_folder_starts_at_the_repository(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A DVC experiment runs in a temporary copy, in which files that git does not know are absent.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(base.parent))
    assert pins.resolve(base.name, pins.folder_revision(base))["name"] == base.name


def test_a_pinned_folder_is_loaded_from_where_it_lies(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "tiny1m"
    records.write_json(tmp_path / pins.BASE_FILE, pins.resolve(str(folder), pins.folder_revision(folder)))
    assert loading.load_base(tmp_path, CHOICE).num_parameters() == 935_040
    assert len(loading.load_tokenizer(tmp_path, "out_inst")) == 512


@pytest.fixture
def pinned(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model's folder that the base_model stage pinned in `tmp_path`, as it lay there then."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder = shutil.copytree(base, tmp_path / "model")
    records.write_json(tmp_path / pins.BASE_FILE, pins.resolve(str(folder), pins.folder_revision(folder)))
    return folder


def other(file: Path) -> None:
    """Other content of the same size at the same time, as a copy leaves it that keeps times."""
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_pinned_folder_is_read_once_while_it_lies_untouched(
    pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memos = contents(tmp_path / ".work")
    assert pins.where(tmp_path) == {"pretrained_model_name_or_path": str(pinned)}
    assert contents(tmp_path / ".work") == memos
    # What a memo says is taken for the content, and one that was cut short is not.
    [*paths] = (tmp_path / ".work").rglob("pins/*")
    paths[0].write_text("")
    pins.where(tmp_path)
    paths[0].write_text("0" * 64)
    with pytest.raises(InputError, match="no longer what the base_model stage read"):
        pins.where(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: other(folder / "model.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json"),
        (shutil.rmtree, ".*config.json, .*model.safetensors, .*"),
    ],
    ids=["other", "lost", "new", "gone"],
)
def test_a_pinned_folder_that_changed_is_refused_at_every_use(
    change: Callable[[Path], Any], named: str, pinned: Path, tmp_path: Path
) -> None:
    loading.load_tokenizer(tmp_path, None)
    change(pinned)
    for use in (lambda: loading.load_base(tmp_path, CHOICE), lambda: loading.load_tokenizer(tmp_path, None)):
        with pytest.raises(InputError, match=rf"model is no longer what .* pins, sha256 \w+; other, .*: {named}$"):
            use()


# --- code of a model's own


@pytest.fixture
def coded(base: Path, tmp_path: Path) -> Path:
    """A model of a kind that transformers lacks, whose code lies beside it and leaves a trace where it is run."""
    folder = shutil.copytree(base, tmp_path / "coded")
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Words", None]}
    for name in ("config.json", "tokenizer_config.json"):
        told = records.read_json(folder / name) | {"auto_map": classes, "tokenizer_class": "Words"}
        records.write_json(folder / name, told | {"model_type": "own", "architectures": None})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def test_code_of_a_model_is_never_run_and_nobody_is_asked(coded: Path, tmp_path: Path) -> None:
    refused = rf"{coded}: it needs code of its own, which is never run; accepted: .* transformers knows$"
    for use in (lambda: loading.load_base(coded, CHOICE), lambda: loading.load_tokenizer(coded, None)):
        with pytest.raises(InputError, match=rf"^model\.base: {refused}"):
            use()
    with pytest.raises(InputError, match=rf"^judge: {refused}"):
        hub.load_hub(str(coded), pins.folder_revision(coded), None)
    assert not (tmp_path / "ran").exists()


# --- tokenizer


def test_a_model_that_the_hub_does_not_give_is_one_message(tmp_path: Path) -> None:
    records.write_json(tmp_path / "base.json", {"name": "owner/model", "revision": "0" * 40, "files": {}})
    with pytest.raises(InputError, match=r"^model\.base: owner/model at 0{40}: [^\n]+$"):
        loading.load_tokenizer(tmp_path, None)
    with pytest.raises(InputError, match=r"^model\.base: owner/model at 0{40}: [^\n]+$"):
        loading.load_base(tmp_path, CHOICE)
    with pytest.raises(InputError, match=r"^judge: owner/judge at 1{40}: [^\n]+$"):
        hub.load_hub("owner/judge", "1" * 40, None, 8)


def test_padding_is_a_token_that_no_reply_trains(base: Path, shared: Path) -> None:
    embedded = loading.load_tokenizer(base, "out_inst_uni")
    assert (embedded.pad_token, embedded.eos_token, embedded.bos_token) == ("<pad>", "</s>", "<s>")
    assert len({embedded.pad_token_id, embedded.eos_token_id, embedded.bos_token_id}) == 3
    pretrained = loading.load_tokenizer(shared / "models" / "tiny1m", "out_inst_uni")
    assert (pretrained.pad_token, pretrained.pad_token_id) == ("<unk>", 0)
    assert pretrained.pad_token_id != pretrained.eos_token_id
    assert (embedded.padding_side, pretrained.padding_side) == ("right", "right")


# --- base model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_attention_are_what_was_asked_for(base: Path, attention: str, dtype: str) -> None:
    model = loading.load_base(base, choice(attention=attention, dtype=dtype))
    assert model.config._attn_implementation == attention
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_attention_does_not_change_what_the_model_says(base: Path) -> None:
    eager, sdpa = (logits(loading.load_base(base, choice(attention=name))) for name in ("eager", "sdpa"))
    assert torch.allclose(eager, sdpa, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_flash_attention_that_cannot_run_is_an_error_and_no_silent_fallback(base: Path) -> None:
    with pytest.raises(InputError, match=r"model\.attention: flash_attention_2 needs .*; accepted here: sdpa, eager"):
        loading.load_base(base, choice(attention="flash_attention_2"))


def test_a_context_beyond_the_model_is_refused(base: Path) -> None:
    assert loading.load_base(base, choice(context=256))
    with pytest.raises(InputError, match=r"model\.context must be at most 256, .* got 257"):
        loading.load_base(base, choice(context=257))


# What a processor has decides what bitsandbytes does with it; each half is told here what it has.
@pytest.mark.parametrize("avx512_bf16", [True, False])
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_nf4_really_holds_four_bits_and_speaks_alike(
    avx512_bf16: bool, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes.nn import Linear4bit, modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: avx512_bf16)
    full, small = loading.load_base(base, CHOICE), loading.load_base(base, choice(quantization="nf4"))
    layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, Linear4bit)}
    assert len(layers) == 2 * 7
    for name, layer in layers.items():
        weights = full.get_submodule(name).weight
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == weights.numel() // 2
        assert layer.weight.quant_state.quant_type == "nf4"
        # Double quantisation: the blocks' scales are quantised themselves.
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32
    found, exact = logits(small), logits(full)
    assert not torch.equal(found, exact)
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.95


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what a process maps")
def test_nf4_maps_nothing_of_the_file_that_it_was_made_of(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "base")
    model = loading.load_base(own, choice(quantization="nf4"))
    assert logits(model).isfinite().all()
    assert str(own / "model.safetensors") not in Path("/proc/self/maps").read_text("utf-8")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="asks what happens without bitsandbytes"
)
def test_nf4_that_cannot_run_is_an_error(base: Path) -> None:
    with pytest.raises(
        InputError, match=r"model\.quantization: nf4 needs the package bitsandbytes; accepted here: none"
    ):
        loading.load_base(base, choice(quantization="nf4"))


# --- adapters


def test_an_adapter_comes_back_as_it_was_saved(adapted: Any, base: Path, tokenizer: Any, tmp_path: Path) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "adapter")
    plain = loading.load_base(base, CHOICE)
    before = logits(plain)
    loaded = loading.load_adapter(plain, tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(adapted))
    assert not torch.allclose(logits(loaded), before, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_tuned_model_says_what_base_and_adapter_say(
    is_tied: bool, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    base = tied(base, tmp_path / "tied") if is_tied else base
    adapted = with_tags(base, tokenizer, r=4, init_lora_weights=False).eval()
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "adapter")
    tuned = loading.load_tuned(base, CHOICE, tmp_path / "adapter")
    assert not isinstance(tuned, PeftModel)
    torch.testing.assert_close(logits(tuned), logits(adapted), rtol=1e-5, atol=1e-5)


def test_in_16_bits_the_adapter_stays_on_top(adapted: Any, base: Path, tokenizer: Any, tmp_path: Path) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "adapter")
    assert isinstance(loading.load_tuned(base, choice(dtype="bfloat16"), tmp_path / "adapter"), PeftModel)


def test_a_server_is_refused_an_adapter_with_tags(adapted: Any, base: Path, tokenizer: Any, tmp_path: Path) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "tags")
    adapted.peft_config["default"].trainable_token_indices = None
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "lora")
    with pytest.raises(InputError, match=r"^generation\.engine: .* accepted: local, or sft\.lora\.tags: false$"):
        loading.assert_served("server", tmp_path / "tags")
    loading.assert_served("local", tmp_path / "tags")
    loading.assert_served("server", tmp_path / "lora")


def test_an_adapter_that_goes_on_training_trains_its_own_weights_alone(
    adapted: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path)
    loaded = loading.load_adapter(loading.load_base(base, CHOICE), tmp_path, trainable=True)
    trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    own = ("lora_", "trainable_tokens_delta")
    assert trainable == {name for name, _ in loaded.named_parameters() if any(kind in name for kind in own)}
    assert len(trainable) == 2 * 2 * 7 + 1


def test_an_adapters_folder_holds_what_the_next_reader_needs_and_no_more(
    adapted: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "adapter")
    files = {path.name: path for path in (tmp_path / "adapter").rglob("*")}
    assert set(files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads(files["adapter_config.json"].read_text())
    assert config["base_model_name_or_path"] == "embedded"
    # PEFT keeps these in a set, whose order differs from process to process.
    assert config["target_modules"] == sorted(config["target_modules"])
    for path in files.values():
        assert str(base).encode() not in path.read_bytes()
        assert base.name.encode() not in path.read_bytes()


def test_equal_adapters_are_equal_bytes(adapted: Any, base: Path, tokenizer: Any, tmp_path: Path) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "one")
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "two")
    assert records.digest(tmp_path / "one") == records.digest(tmp_path / "two")


def test_an_adapter_of_another_model_is_refused_in_one_line(
    adapted: Any, base: Path, tokenizer: Any, shared: Path, tmp_path: Path
) -> None:
    loading.save_adapter(adapted, tokenizer, base, tmp_path / "adapter")
    other = loading.load_base(shared / "models" / "tiny1m", CHOICE)
    with pytest.raises(InputError, match=r"adapter does not fit the base model: .*size mismatch .*\[5, 128\]\)\.$"):
        loading.load_adapter(other, tmp_path / "adapter")
    # Of the same width, but without the tags' tokens.
    smaller = loading.load_base(base, CHOICE)
    smaller.resize_token_embeddings(300)
    with pytest.raises(InputError, match=r"adapter does not fit the base model: index \d+ is out of bounds .*$"):
        loading.load_adapter(smaller, tmp_path / "adapter")
