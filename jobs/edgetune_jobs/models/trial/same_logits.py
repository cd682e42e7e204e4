"""Checks that a multimodal model computes the logits of a text as its text part does, around the decoder of both.

The forward of both models runs with a decoder, an embedding and an output head of a few numbers in their place: what
remains is what the multimodal model does around them, with the settings of its config.json, such as a scale or a cap of
the logits, positions and masks.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgetune_jobs.wording import first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TOKENS = 6
_WIDTH = 4
# Hidden states as large as those of real models: a cap of the logits, usually 30 to 50, changes them.
_MAGNITUDE = 40.0


def difference(whole: "PreTrainedModel", text: "PreTrainedModel") -> str | None:
    """What a multimodal model does differently with a text, as a predicate; None if nothing.

    Args:
        whole: the multimodal model, on the meta device; its modules are changed.
        text: its text part, on the meta device; its modules are changed.
    """
    import torch

    ids = torch.arange(1, _TOKENS)[None]
    expected, _ = _logits(text, ids)
    try:
        logits, arguments = _logits(whole, ids)
    except Exception as error:  # noqa: BLE001 - the forward of a model may need any other argument
        return f"does not compute the logits of a text alone: {first_line(error)[:200]}"
    if not torch.equal(logits, expected):
        return "computes other logits from the same hidden states"
    if not all(_is_causal(mask) for mask in _masks(arguments.get("attention_mask"))):
        return "lets tokens attend to later ones"
    positions = arguments.get("position_ids")
    if positions is not None and not bool((positions == torch.arange(_TOKENS - 1)).all()):
        return "numbers the positions of a text differently"
    return None


def _logits(model: "PreTrainedModel", ids: "torch.Tensor") -> "tuple[torch.Tensor, Mapping[str, Any]]":
    """A model's logits of token IDs, and what it passes to its decoder."""
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import MoeModelOutputWithPast

    table = torch.linspace(-1.0, 1.0, _TOKENS * _WIDTH).view(_TOKENS, _WIDTH)
    received: dict[str, Any] = {}
    inner = model.get_decoder()
    while inner.get_decoder() is not inner and inner.get_output_embeddings() is not None:
        inner = inner.get_decoder()  # the decoder of some models is a whole causal language model

    def decode(input_ids: Any = None, inputs_embeds: Any = None, **arguments: Any) -> Any:
        received.update(arguments)
        embedded = table[input_ids] if inputs_embeds is None else inputs_embeds
        return MoeModelOutputWithPast(last_hidden_state=embedded * _MAGNITUDE)

    inner.forward = decode
    model.get_input_embeddings().forward = lambda input_ids: table[input_ids]
    head = model.get_output_embeddings() or model.get_decoder().get_output_embeddings()
    head.forward = lambda hidden: hidden @ table.T
    for module in list(model.modules()):
        if isinstance(module, PreTrainedModel):  # some move tensors to the device of their first parameter
            module.register_parameter("_first", torch.nn.Parameter(torch.zeros(1)))
    with torch.no_grad():
        output = model.eval()(input_ids=ids, use_cache=False)
    return output.logits, received


def _masks(value: Any) -> "Iterator[torch.Tensor]":
    """The masks [batch, heads, queries, keys] among a model's masks: one, or one for each kind of layer."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _masks(each)
    elif getattr(value, "dim", lambda: 0)() == len("bhqk"):
        yield value


def _is_causal(mask: "torch.Tensor") -> bool:
    """Whether no query attends to a later key: False, or a large negative number, everywhere above the diagonal."""
    import torch

    attended = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return not bool(attended.triu(diagonal=1).any())
