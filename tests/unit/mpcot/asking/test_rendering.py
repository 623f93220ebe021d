"""Prompts in the form of templates that know no system role, drop it, or always think."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError

from cluster.base.errors import UserError
from mpcot.asking.engines.engine import Ask
from mpcot.asking.engines.vllm_engine import Vllm
from mpcot.asking.parsing import LabelTokens
from mpcot.asking.prompts import answer, answer_regex, messages
from mpcot.asking.rendering import check_prompts, end_of_thought, render
from mpcot.config import AnswerSettings, PerspectiveSettings, VllmEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme
from tests.helpers.hub_cache import NAME, pushed_to
from tests.helpers.tiny_llama import TEMPLATE, tiny_llama_tokenizer

ESCI = load_scheme("esci")
CHAT = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Query: drill"}]
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}"
THINKS = "{% if add_generation_prompt %}<think>\n{% endif %}"


@pytest.mark.parametrize("template", [REFUSES + TEMPLATE, DROPS])
def test_a_template_without_a_system_role_gets_the_system_text_in_the_users_turn(template: str) -> None:
    text = render(tiny_llama_tokenizer(template), CHAT)
    assert text.startswith("<user>You judge.\n\nQuery: drill") and "<system>" not in text


def test_a_template_with_a_system_role_keeps_it() -> None:
    assert render(tiny_llama_tokenizer(), CHAT) == "<system>You judge.<end><user>Query: drill<end><assistant>"


def test_a_model_without_a_chat_template_gets_plain_text() -> None:
    assert render(tiny_llama_tokenizer(template=None), CHAT) == "You judge.\n\nQuery: drill\n\n"


def test_a_thought_that_the_template_opens_is_closed_unless_the_model_is_to_think() -> None:
    tokenizer = tiny_llama_tokenizer(TEMPLATE + THINKS)
    assert render(tokenizer, CHAT).endswith("<assistant><think>\n\n</think>\n\n")
    text = render(tokenizer, CHAT, thinking=True)
    assert text.endswith("<assistant><think>\n") and end_of_thought(text) == "</think>"


def test_a_thought_is_opened_where_the_template_leaves_it_to_the_model() -> None:
    tokenizer = tiny_llama_tokenizer(TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}")
    assert render(tokenizer, CHAT).endswith("<assistant><think></think>")
    text = render(tokenizer, CHAT, thinking=True)
    assert text.endswith("<assistant><think>\n") and end_of_thought(text) == "</think>"


def test_room_for_thinking_is_taken_from_the_prompt() -> None:
    ask = AnswerSettings(max_tokens=100)
    assert VllmEngine(max_model_len=1000).prompt_tokens(ask) == 900
    assert VllmEngine(max_model_len=1000, thinking="on", thinking_tokens=300).prompt_tokens(ask) == 600


class ThinkingEngine:
    """Writes a thought that spends its budget, then an answer, and notes the prompts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.asked = tokenizer, []

    async def generate(self, prompt: Any, sampling: Any, request: str) -> AsyncIterator[Any]:
        self.asked.append((self.tokenizer.decode(prompt["prompt_token_ids"]), sampling))
        text = answer("It is a drill.", "E") if sampling.structured_outputs else "Let me see. " * 9
        ids = self.tokenizer.encode(text)[: sampling.max_tokens]
        if sampling.structured_outputs:
            ids.append(self.tokenizer.eos_token_id)
        text = self.tokenizer.decode(ids) if sampling.detokenize else ""
        said = SimpleNamespace(text=text, token_ids=ids, logprobs=None, finish_reason="stop")
        yield SimpleNamespace(outputs=[said], num_cached_tokens=0)


def test_a_model_that_may_think_does_so_within_its_budget_and_only_its_answer_is_kept() -> None:
    pytest.importorskip("vllm")
    tokenizer = tiny_llama_tokenizer(TEMPLATE + THINKS)
    vllm = object.__new__(Vllm)
    vllm.tokenizer, vllm.ask, vllm.gpu, vllm.thinking, vllm.limit = tokenizer, AnswerSettings(), False, 40, 4000
    vllm.regex, vllm.labels = answer_regex(ESCI, 4, 90), LabelTokens.of(tokenizer, ESCI)
    vllm.engine = ThinkingEngine(tokenizer)
    reply = asyncio.run(vllm.reply(Ask("k", CHAT, 1)))
    (opened, freely), (ended, bound) = vllm.engine.asked
    assert opened.endswith("<assistant><think>\n") and freely.stop == ["</think>"] and freely.max_tokens < 40
    assert ended.startswith(opened + "Let me see.") and ended.endswith("\n</think>\n\n")
    assert len(tokenizer.encode(ended)) - len(tokenizer.encode(opened)) <= 40
    assert reply.text == answer("It is a drill.", "E") and bound.structured_outputs.regex == vllm.regex
    assert reply.output_tokens == freely.max_tokens + len(tokenizer.encode(reply.text)) + 1


def tokenizer_folder(folder: Path, template: str) -> str:
    tiny_llama_tokenizer(template).save_pretrained(folder)
    return str(folder)


def test_prompts_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    ask, pair = AnswerSettings(few_shot=1), {"pair_id": "p", "query": "shoe", "title": "Shoe"}
    perspectives = load_perspectives(PerspectiveSettings())
    chats = [(p.name, messages(pair, p, ESCI, ask)) for p in perspectives]
    check_prompts(tokenizer_folder(tmp_path / "good", TEMPLATE), chats, 4000, thinking=False)
    with pytest.raises(UserError, match=r"the prompt of intent has \d+ tokens .* has room for 40\. Raise engine"):
        check_prompts(str(tmp_path / "good"), chats, 40, thinking=False)
    never = tokenizer_folder(tmp_path / "never", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refuses the prompt of perspective intent: roles must alternate"):
        check_prompts(never, chats, 4000, thinking=False)
    with pytest.raises(TemplateError):
        render(tiny_llama_tokenizer("{{ raise_exception('roles must alternate') }}"), CHAT)


def test_prompts_are_checked_with_the_template_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tokenizer_folder(tmp_path / "never", "{{ raise_exception('roles must alternate') }}")
    good = tokenizer_folder(tmp_path / "good", TEMPLATE)
    for folder in (good, refuses):
        for name in ("config.json", "model.safetensors"):
            (Path(folder) / name).write_text("{}")
    model = pushed_to(monkeypatch, tmp_path / "hub", Path(good), Path(refuses))
    check_prompts(model, [("intent", CHAT)], 4000, thinking=False)
    with pytest.raises(UserError, match="roles must alternate"):
        check_prompts(NAME, [("intent", CHAT)], 4000, thinking=False)
