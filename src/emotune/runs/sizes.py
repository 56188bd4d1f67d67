"""What a model of a shape takes in memory, in bytes: formulas that need neither torch nor weights.

What they say of a process beside what it took: benchmarks/estimate.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emotune.core.errors import InputError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A 4-bit weight, a byte of scale for each 64, a float32 for each 256 of those (QLoRA, Dettmers et al. 2023).
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# An AdamW state of two numbers, in float32 or, with a float32 scale for each 256, in 8 bits (Dettmers et al. 2022).
STATE = {"adamw_torch": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}
# The scores that a loss holds at once, in each of its few tensors; more positions go in chunks.
SCORES = 2**25


class Family(NamedTuple):
    """How the layers of a kind of model differ from Llama's: what else they have, and whether they tie by default."""

    tied: bool = False
    norms: int = 2
    head_norms: int = 0
    biases: int = 0


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "smollm3": Family(tied=True),
    "gemma": Family(tied=True),
    "gemma2": Family(tied=True, norms=4),
    "gemma3_text": Family(tied=True, norms=4, head_norms=1),
    "qwen2": Family(biases=1),
    "qwen3": Family(head_norms=1),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A causal model of gated layers; `queries` and `keys` are what a token's have over all heads."""

    kind: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    head: int
    queries: int
    keys: int
    tied: bool

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """What each linear of a layer takes and gives, by its name."""
        wide = dict.fromkeys(("k_proj", "v_proj"), (self.hidden, self.keys))
        gated = dict.fromkeys(("gate_proj", "up_proj"), (self.hidden, self.intermediate))
        attention = {"q_proj": (self.hidden, self.queries), **wide, "o_proj": (self.queries, self.hidden)}
        return attention | gated | {"down_proj": (self.intermediate, self.hidden)}

    @property
    def linear(self) -> int:
        """The weights of all layers' linears: what nf4 quantises."""
        return self.layers * sum(taken * given for taken, given in self.linears.values())

    @property
    def parameters(self) -> int:
        """All weights; tied embeddings once."""
        family = FAMILIES[self.kind]
        others = family.norms * self.hidden + 2 * family.head_norms * self.head
        others += family.biases * (self.queries + 2 * self.keys)
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.linear + self.layers * others + self.hidden


def shape(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a config.json tells; InputError, with the model's name, where its kind has no formula here."""
    text = config.get("text_config") or config
    kind = text.get("model_type", config.get("model_type"))
    if kind not in FAMILIES:
        raise InputError(f"model.base: {name} is of kind {kind}, whose size is not known; known: {', '.join(FAMILIES)}")
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    return Shape(
        kind=kind,
        vocabulary=text["vocab_size"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        head=head,
        queries=heads * head,
        keys=(text.get("num_key_value_heads") or heads) * head,
        tied=text.get("tie_word_embeddings", config.get("tie_word_embeddings", FAMILIES[kind].tied)),
    )


def weights(s: Shape, dtype: str, nf4: bool) -> int:
    """The frozen model: in nf4 its layers' linears alone are, embeddings, head and norms stay in `dtype`."""
    quantised = s.linear if nf4 else 0
    return round(quantised * NF4) + (s.parameters - quantised) * BYTES[dtype]


def adapter(s: Shape, rank: int, names: Sequence[str] | None, tags: int) -> int:
    """Trained numbers: two matrices of `rank` for each of the named linears, or all, and an embedding for each tag."""
    chosen = [sum(size) for name, size in s.linears.items() if names is None or name in names]
    return s.layers * rank * sum(chosen) + tags * s.hidden


def saved(s: Shape, dtype: str, rank: int, dropout: bool, length: int) -> int:
    """What a layer keeps of a token for backward, the token in a padded row of `length`, under LoRA on all its linears.

    Counted by what autograd saves: the inputs of norms (in 16 bits a float32 copy), of LoRA (in 16 bits once for each
    linear, which autocast makes) and of the gate's product; queries, keys, values (as wide as queries) and attention's
    output; a row of the mask.
    """
    size, family = BYTES[dtype], FAMILIES[s.kind]
    inputs = 5 * s.hidden + s.queries + s.intermediate
    shared = 2 * s.hidden + s.queries + s.intermediate
    norms = family.norms * (s.hidden + 1) + family.head_norms * (s.queries + s.keys)
    result = norms * 4 + 3 * (s.queries + s.intermediate) * size
    result += (shared if size == 4 else inputs + s.queries) * size
    if dropout:
        # A mask for each linear's input and, where the input was shared, a copy.
        result += inputs * 4 + (inputs - shared) * 4 * (size == 4)
    return result + 7 * rank * size + s.heads * 4 + length * size


def activations(s: Shape, layer: int, dtype: str, tokens: int, checkpointing: bool) -> int:
    """What a step keeps of its tokens: `layer` bytes of each in every layer, or every layer's input and one layer.

    With what backward works with on top: the gradients of a layer's widest tensors.
    """
    size = BYTES[dtype]
    kept = s.layers * s.hidden * size + layer if checkpointing else s.layers * layer
    return tokens * (kept + 3 * s.intermediate * size + 4 * s.hidden * 4)


def scores(s: Shape, dtype: str, positions: int) -> int:
    """A loss over the vocabulary: the head's scores, float32, log-softmax, its exponential and a product at once."""
    return min(positions, max(1, SCORES // s.vocabulary)) * s.vocabulary * (BYTES[dtype] % 4 + 4 * 4)


def cache(s: Shape, dtype: str, positions: int) -> int:
    """Keys and values of so many positions in all layers."""
    return 2 * s.layers * s.keys * BYTES[dtype] * positions


def reading(s: Shape, dtype: str, tokens: int, adapted: bool) -> int:
    """What reading tokens without gradients works with: a layer's gated product, attention, norms in float32.

    Where an adapter lies on top of the weights, what its linears take and give in float32 too.
    """
    own = (4 * s.intermediate + 3 * s.queries) * BYTES[dtype] + 2 * s.hidden * 4
    return tokens * (own + adapted * 4 * sum(map(sum, s.linears.values())))
