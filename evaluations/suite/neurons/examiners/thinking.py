"""Extraction of the answer of a reasoning model, without its reasoning.

If the endpoint does not separate them, the reply contains both, delimited by

- tags: ``<think>...</think>`` (DeepSeek R1, Qwen 3, QwQ, GLM, Olmo), ``<thinking>``,
  ``<reasoning>``, ``<thought>`` (EXAONE), ``<seed:think>`` (Seed-OSS), ``[THINK]...[/THINK]``
  (Magistral), ``◁think▷...◁/think▷`` (Kimi), ``<|begin_of_thought|>`` (Sky-T1),
  ``<|START_THINKING|>`` (Command A), ``<|inner_prefix|>`` (Apertus);
- channels: ``<|channel|>analysis<|message|>...<|channel|>final<|message|>`` (gpt-oss; without its
  special tokens ``analysis...assistantfinal...``), ``<|channel>thought...<channel|>`` (Gemma);
- sentences: "Here is my thought process: ... Here is my response:" (Granite).

Many chat templates open the reasoning in the prompt, so that the reply contains only its end.
"""

from __future__ import annotations

import re

_LT, _GT = r"(?:<|&lt;|＜|◁)\s*", r"\s*(?:>|&gt;|＞|▷)"
_THOUGHT = (
    r"(?:[\w-]+:)?(?:(?:inner|internal|chain|train|ant|my|deep)[ _-]?(?:of)?[ _-]?)?"
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ion)?|rationale|analysis|monologue"
    r"|scratch[ _-]?pad|cot|deliberation)(?:[ _-]?(?:process|trace|block))?"
)
_ANSWER = r"(?:(?:final|my)[ _-]?)?(?:answer|response|solution|final)"
_BAR = r"[|｜]"
_KINDS = {
    # a tag, perhaps with attributes, or cut off at the end of the reply
    "open": [
        rf"{_LT}{_THOUGHT}(?:\s[^<>]{{0,200}})?{_GT}",
        rf"<{_THOUGHT}\Z",
        r"\[\s*(?:think(?:ing)?|reasoning)\s*\]",
        rf"<{_BAR}\s*(?:begin|start)(?:_of)?_(?:thought|think|thinking|reasoning)\s*{_BAR}>",
        rf"<{_BAR}\s*(?:think|thinking|reasoning|inner_prefix)\s*{_BAR}>",
        rf"<{_BAR}\s*channel\s*{_BAR}?>\s*(?:analysis|commentary|thought|thinking|reasoning)"
        rf"[^<\n]*(?:<{_BAR}\s*message\s*{_BAR}>)?",
        r"\A\s*(?:assistant)?(?:(?-i:analysis(?=[A-Z]))|commentary(?-i:(?=[A-Z])))",
        r"assistant(?:analysis|commentary)(?=\S)",
        r"here(?: is|['’]s) my (?:thought|thinking|reasoning) process\s*:",
    ],
    "close": [
        rf"{_LT}/\s*{_THOUGHT}{_GT}",
        r"\[\s*/\s*(?:think(?:ing)?|reasoning)\s*\]",
        rf"<{_BAR}\s*end(?:_of)?_(?:thought|think|thinking|reasoning)\s*{_BAR}>",
        rf"<{_BAR}\s*(?:/\s*(?:think|thinking|reasoning)|inner_suffix)\s*{_BAR}>",
        rf"<{_BAR}\s*channel\s*{_BAR}?>\s*final[^<\n]*(?:<{_BAR}[^|｜]*{_BAR}>[^<\n]*)?"
        rf"<{_BAR}\s*message\s*{_BAR}>",
        rf"<\s*channel\s*{_BAR}>(?:\s*final\b)?",
        r"assistantfinal",
        r"here(?: is|['’]s) my (?:final )?(?:response|answer)\s*:",
    ],
    # the end of a message ends its reasoning
    "end": [rf"<{_BAR}\s*(?:end|return)\s*{_BAR}>"],
    "answer": [
        rf"{_LT}{_ANSWER}{_GT}",
        rf"<{_BAR}\s*(?:begin_of_solution|start_response|start_text)\s*{_BAR}>",
    ],
    "mark": [
        rf"{_LT}/\s*{_ANSWER}{_GT}",
        rf"{_LT}{_THOUGHT}\s*/{_GT}",
        rf"<{_BAR}\s*(?:end_of_solution|end_response|end_text|im_end|im_start|eot_id|endoftext"
        rf"|end▁of▁sentence|end_of_turn|message|constrain)\s*{_BAR}>",
        rf"<{_BAR}\s*start\s*{_BAR}>(?:assistant)?",
        r"</s>|<eos>|<end_of_turn>|<turn\|>",
    ],
}
# a self-closing tag would also match as an opening tag
_ORDER = ("mark", "close", "end", "answer", "open")
_MARK = re.compile(
    "|".join(f"(?P<{kind}>{'|'.join(_KINDS[kind])})" for kind in _ORDER), re.IGNORECASE
)
_LEVEL = re.compile(r"\t *\d+[ \t\r]*(?:\n|\Z)")


def final_answer(reply: str) -> str | None:
    """Return the answer in a reply; None if its reasoning does not end.

    Positions are preserved: removed text is replaced by as many line ends. Of several parts, the
    answer is the part after the last reasoning, unless it has no words. A delimiter in quotes, or
    on its own line with a level, is a quoted token and not a delimiter.
    """
    parts: list[tuple[int, int]] = []
    last, first, is_thinking = 0, 0, False
    for mark in _MARK.finditer(reply):
        if _is_quoted(reply, mark):
            continue
        kind = mark.lastgroup
        if is_thinking:
            if kind in ("close", "end"):
                is_thinking, first, last = False, mark.end(), len(parts)
            continue
        if kind in ("close", "answer"):
            parts, last = [], 0
        else:
            parts.append((first, mark.start()))
            is_thinking = kind == "open"
        first = mark.end()
    if is_thinking:
        return None
    parts.append((first, len(reply)))
    if any(re.search(r"\w", reply[begin:end]) for begin, end in parts[last:]):
        parts = parts[last:]
    return _keep_parts(reply, parts)


def _keep_parts(reply: str, parts: list[tuple[int, int]]) -> str:
    text, at = [], 0
    for begin, end in parts:
        text += ["\n" * (begin - at), reply[begin:end]]
        at = end
    return "".join([*text, "\n" * (len(reply) - at)])


def _is_quoted(reply: str, mark: re.Match[str]) -> bool:
    before = reply[max(0, mark.start() - 1) : mark.start()]
    after = reply[mark.end() : mark.end() + 1]
    if before and before == after and before in "\"'`":
        return True
    is_line = before in ("", "\n")
    return is_line and _LEVEL.match(reply, mark.end()) is not None
