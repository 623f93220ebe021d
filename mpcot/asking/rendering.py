"""Puts a chat into the form of a model's own template, whatever the template makes of system texts and of thinking."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError

from cluster.base.errors import UserError
from cluster.models.folders import hub_arguments
from mpcot.asking.prompts import Message

# In the keys of answers. Raise it when the same chat is put into a template otherwise.
RENDERING_VERSION = 1
OPENED = re.compile(r"<(think|thinking|thought|reasoning)>\s*$")


def render(tokenizer: Any, chat: list[Message], thinking: bool = False) -> str:
    """Return the chat in the form of the model's own template, up to where the answer starts.

    Without a template the messages are joined by blank lines, so that base models work too. A template that refuses or
    drops system texts gets them at the top of the user's turn.

    Args:
        thinking: end where the model's thoughts start. Otherwise a thought that the template opens is closed at once.

    Raises:
        jinja2.TemplateError: the template takes the chat in neither form.
    """
    if not getattr(tokenizer, "chat_template", None):
        text = "\n\n".join(m["content"] for m in chat) + "\n\n"
    else:
        text = _by_template(tokenizer, chat, thinking)
    opened = OPENED.search(text)
    if thinking:
        return text if opened else f"{text}<think>\n"
    return f"{text.rstrip()}\n\n</{opened[1]}>\n\n" if opened else text


def end_of_thought(prompt: str) -> str:
    """Return the mark that ends the thoughts which this prompt has opened."""
    opened = OPENED.search(prompt)
    assert opened, "rendered with thinking"
    return f"</{opened[1]}>"


def _by_template(tokenizer: Any, chat: list[Message], thinking: bool) -> str:
    def filled(messages: list[Message]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        )

    first, *rest = chat
    if first["role"] != "system" or not rest:
        return filled(chat)
    try:
        text = filled(chat)
        if first["content"].strip() in text:
            return text
    except TemplateError:
        pass
    return filled([rest[0] | {"content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]])


def check_prompts(model: str, chats: Iterable[tuple[str, list[Message]]], limit: int, thinking: bool) -> None:
    """Render a prompt about a short pair from each perspective before the model is loaded.

    Args:
        chats: names of perspectives with their chats.
        limit: tokens that a prompt may have.

    Raises:
        UserError: the model's template refuses the prompt, or the prompt is too long for any pair.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**hub_arguments(model), trust_remote_code=False)
    for name, chat in chats:
        try:
            text = render(tokenizer, chat, thinking)
        except TemplateError as error:
            raise UserError(
                f"teacher.model: the chat template of {model} refuses the prompt of perspective {name}: {error}. "
                "Choose a model that was trained to follow instructions, or mend its chat_template."
            ) from error
        if (tokens := len(tokenizer.encode(text, add_special_tokens=False))) > limit:
            raise UserError(
                f"perspectives: the prompt of {name} has {tokens} tokens with the shortest of products, and the engine "
                f'has room for {limit}. Raise engine.max_model_len, lower few_shot, or set guide = "short".'
            )
