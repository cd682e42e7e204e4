"""White space beside special tokens, which some tokenizers remove.

GGUF cannot say so. llama.cpp removes white space after special tokens if the name of the model contains Phi-3
(src/llama-vocab.cpp), and does not load a file of that name without the tokens of Phi-3.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.wording import some

# Tokens that a vocabulary of Phi-3 has; after the last three, llama.cpp keeps white space.
_PHI3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_PHI3_KEEPS = frozenset(_PHI3_TOKENS[1:])
_PHI3_NAME = re.compile("phi-?3", re.IGNORECASE)
# White space in a string of a chat template, also in another string that is appended.
_JOINT = r"""(?:['"]\s*[+~]\s*['"])?"""
_SPACE = r"(?:\s|\\[nrt])"


def is_phi3(vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a tokenizer removes white space after exactly the tokens after which llama.cpp does in a Phi-3.

    Args:
        vocabulary: ids by token.
        added: the added tokens as in tokenizer.json.
    """
    contents = {token["content"] for token in added}
    strips = {token["content"] for token in added if token["rstrip"]}
    if any(token["lstrip"] or token["single_word"] for token in added):
        return False
    has_tokens = all(token in vocabulary or token in contents for token in _PHI3_TOKENS)
    return has_tokens and strips == contents - _PHI3_KEEPS


def differences(added: Sequence[Mapping[str, Any]], template: str) -> tuple[str, ...]:
    """Warnings about texts for which llama.cpp gives other tokens.

    Args:
        added: the added tokens as in tokenizer.json.
        template: the chat template.

    Raises:
        Unsupported: these are all texts of this template, or llama.cpp matches a token within words.
    """
    found = []
    for token in added:
        text = token["content"]
        if token["single_word"]:
            raise Unsupported(f"the tokenizer matches {text!r} with single_word, unlike llama.cpp")
        if not (token["lstrip"] or token["rstrip"]):
            continue
        found.append(text)
        before = token["lstrip"] and re.search(_SPACE + _JOINT + re.escape(text), template)
        after = token["rstrip"] and re.search(re.escape(text) + _JOINT + _SPACE, template)
        if before or after:
            raise Unsupported(
                f"the tokenizer removes white space beside {text!r}, which its chat template has there, and llama.cpp "
                "keeps it"
            )
    return (f"llama.cpp keeps white space beside {some(found)}, which the tokenizer removes",) if found else ()


def name_for(name: str, *, strips_as_phi3: bool) -> str:
    """The name of the model with which llama.cpp removes white space as the tokenizer does."""
    has_name = _PHI3_NAME.search(name) is not None
    if has_name == strips_as_phi3:
        return name
    return f"{name} (Phi-3)" if strips_as_phi3 else _PHI3_NAME.sub("Phi 3", name)
