"""Prompts: an instruction, and perhaps an input, as the text that a language model continues with the answer.

alpaca    the frame of Stanford Alpaca (Taori et al. 2023)
chat      the chat template of the tokenizer's folder, with one message of the user
else      the user's own text with {instruction}, and perhaps {input}
"""

from __future__ import annotations

import re
from typing import Any

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
FIELDS = re.compile(r"\{(instruction|input)\}")


def check_template(template: str) -> None:
    """Require `alpaca`, `chat`, or a text with {instruction} or {input} and no other word in braces."""
    if template not in ("alpaca", "chat") and not FIELDS.search(template):
        raise ValueError(
            f"template: {template!r} is neither alpaca nor chat, and has neither {{instruction}} nor {{input}}"
        )
    unknown = re.findall(r"\{\s*([^\W\d]\w*)\s*\}", FIELDS.sub("", template))
    if unknown:
        raise ValueError(f"template: {{{unknown[0]}}} is not a field; the fields are {{instruction}} and {{input}}")


def prompt(template: str, instruction: str, context: str, tokenizer: Any) -> str:
    r"""Return the prompt.

    Args:
        template: alpaca, chat, or a text with {instruction}, and perhaps {input}. Braces around anything but one word
            stay.
        instruction: what to do.
        context: what to do it with; "" for none.
        tokenizer: a tokenizer of transformers, for `chat`.

    Raises:
        ValueError: the tokenizer has no chat template, or it fails.

    >>> prompt("Q: {instruction} {input}\nA:", "Add {1, 2}.", "", None)
    'Q: Add {1, 2}. \nA:'
    """
    if template == "chat":
        from jinja2 import TemplateError

        if tokenizer.chat_template is None:
            raise ValueError("template: the tokenizer's folder has no chat template; set alpaca or a text")
        text = f"{instruction}\n\n{context}" if context else instruction
        message = [{"role": "user", "content": text}]
        try:
            return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(
                f"template: the tokenizer's chat template refuses one message of the user: {error}; "
                "set alpaca or a text"
            ) from error
    if template == "alpaca":
        template = ALPACA_WITH_INPUT if context else ALPACA
    values = {"instruction": instruction, "input": context}
    return FIELDS.sub(lambda field: values[field[1]], template)
