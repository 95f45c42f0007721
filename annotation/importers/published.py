"""Published preference data by its columns: what they hold, and what their labels mean.

One entry a schema. In: the columns of a file. Out: the schema that has these. A schema that holds no comparisons is
known too, so that it can be refused with what it is. Where a row has to be rewritten before its columns hold what they
should, a small function does it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

from annotation.importers.columns import Columns, Labels, number_of, text_of, word_of
from annotation.importers.intake import Unusable
from annotation.importers.turns import decoded

Kind = Literal["preferences", "votes", "other"]
Row = dict[str, Any]
SIGNED = Labels(left=("-3", "-2", "-1"), right=("1", "2", "3"), tie=("0",))  # below 0: the first is better
ONE_HOT = {"winner_model_a": "left", "winner_model_b": "right", "winner_tie": "tie"}
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


class Schema(NamedTuple):
    """How a data set is laid out.

    ``signs`` are the columns that tell it. ``knows_sides``: left and right are where they stood on a screen.
    ``prepare`` gives a row the columns that it ``makes``. ``refusal`` says what it is instead of comparisons, and what
    reads it.
    """

    name: str
    signs: tuple[str, ...]
    kind: Kind
    columns: Columns = Columns()
    labels: Labels = Labels()
    knows_sides: bool = False
    prepare: Callable[[Row], Row] | None = None
    makes: tuple[str, ...] = ()
    is_scored: bool = False
    refusal: str = ""


def _one_hot(row: Row) -> Row:
    """Which of the columns with a 1 or a 0 each is set."""
    chosen = [outcome for column, outcome in ONE_HOT.items() if word_of(row.get(column, "")) in ("1", "true")]
    if len(chosen) != 1:
        told = ", ".join(f"{column}: {text_of(row.get(column, 'empty'))}" for column in ONE_HOT)
        raise Unusable(f"not one winner ({told})")
    return {"label": chosen[0]}


def _by_model(row: Row) -> Row:
    """A winner that is called by the name of its model."""
    names = [text_of(row.get(column, "")) for column in ("model_a", "model_b")]
    winner = text_of(row.get("winner", ""))
    return {"winner": ("left", "right")[names.index(winner)]} if winner and names.count(winner) == 1 else {}


def _by_scores(row: Row) -> Row:
    """The answer with the higher score, and by how much."""
    scores = [number_of(row.get(column)) for column in ("score_0", "score_1")]
    if scores[0] is None or scores[1] is None:
        raise Unusable("no score (score_0 or score_1 is no number)")
    gap = scores[0] - scores[1]
    return {"label": "left" if gap > 0 else "right" if gap < 0 else "tie", "strength": abs(gap)}


def _weighed(row: Row) -> Row:
    """AlpacaEval: 1 is the first output, 2 the second, what lies between is a probability; 1.5 and 0 are ties."""
    given = number_of(row.get("preference"))
    if given is None or not (given == 0 or 1 <= given <= 2):
        return {}
    return {"label": "tie" if given in (0, 1.5) else "left" if given < 1.5 else "right"}


def _summaries(row: Row) -> Row:
    """OpenAI's comparisons of summaries, with the words that ask for one as their paper writes them."""
    info, summaries = decoded(row.get("info")), decoded(row.get("summaries"))
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        raise Unusable("no post with two summaries (info, summaries)")
    post = info.get("post")
    asked = (
        f"SUBREDDIT: r/{info.get('subreddit', '')}\nTITLE: {info.get('title', '')}\nPOST: {post}\nTL;DR:"
        if post
        else f"Article: {info.get('article', '')}\nTL;DR:"
    )
    texts = [summary.get("text") if isinstance(summary, dict) else None for summary in summaries]
    return {"prompt": asked, "left": texts[0], "right": texts[1]}


def _asked_of_openai(row: Row) -> Row:
    """OpenAI's preferences: the request whose two answers are compared, with its tools."""
    request = decoded(row.get("input"))
    if not isinstance(request, dict) or "messages" not in request:
        raise Unusable("no request with messages (input)")
    return {"prompt": request["messages"], "tools": request.get("tools") or []}


def _scored(row: Row) -> Row:
    """The gap between the scores of chosen and rejected, where nothing else says how much better one is."""
    if "strength" in row or "margin" in row:
        return {}
    for better, worse in SCORES:
        high, low = number_of(row.get(better)), number_of(row.get(worse))
        if high is not None and low is not None:
            return {"strength": round(high - low, 9)}
    return {}


SCHEMAS: Sequence[Schema] = (
    Schema(
        "arena conversations",
        ("conversation_a", "conversation_b", "winner"),
        "votes",
        Columns(left="conversation_a", right="conversation_b", label="winner", annotator="judge", id="question_id"),
        knows_sides=True,
        prepare=_by_model,
    ),
    Schema(
        "arena table",
        ("response_a", "response_b", *ONE_HOT),
        "votes",
        Columns(left="response_a", right="response_b"),
        knows_sides=True,
        prepare=_one_hot,
        makes=("label",),
    ),
    Schema(
        "arena table with winner",
        ("response_a", "response_b", "winner"),
        "votes",
        Columns(left="response_a", right="response_b", label="winner", annotator="judge"),
        knows_sides=True,
        prepare=_by_model,
    ),
    Schema(
        "HelpSteer2 preferences",
        ("response_1", "response_2", "preference_strength"),
        "votes",
        Columns(left="response_1", right="response_2", label="preference_strength", strength="preference_strength"),
        SIGNED,
    ),
    Schema(
        "HelpSteer3 preferences",
        ("context", "response1", "response2", "overall_preference"),
        "votes",
        Columns(
            prompt="context",
            left="response1",
            right="response2",
            label="overall_preference",
            strength="overall_preference",
        ),
        SIGNED,
    ),
    Schema(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        "votes",
        Columns(prompt="history", left="human_ref_A", right="human_ref_B", label="labels"),
        Labels(left=("1",), right=("0",)),
    ),
    Schema(
        "PKU-SafeRLHF",
        ("response_0", "response_1", "better_response_id"),
        "votes",
        Columns(left="response_0", right="response_1", label="better_response_id"),
        Labels(left=("0",), right=("1",)),
    ),
    Schema(
        "AlpacaEval annotations",
        ("instruction", "output_1", "output_2", "preference"),
        "votes",
        Columns(prompt="instruction", left="output_1", right="output_2"),
        prepare=_weighed,
        makes=("label",),
    ),
    Schema(
        "LLMBar",
        ("input", "output_1", "output_2", "label"),
        "votes",
        Columns(prompt="input", left="output_1", right="output_2"),
        Labels(left=("1",), right=("2",)),
    ),
    Schema(
        "WebGPT comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        "votes",
        Columns(prompt="question.full_text", left="answer_0", right="answer_1"),
        prepare=_by_scores,
        makes=("label", "strength"),
        is_scored=True,
    ),
    Schema(
        "TL;DR comparisons",
        ("info", "summaries", "choice"),
        "votes",
        Columns(label="choice", annotator="worker"),
        Labels(left=("0",), right=("1",)),
        prepare=_summaries,
        makes=("prompt", "left", "right"),
    ),
    Schema(
        "Prometheus preferences",
        ("orig_instruction", "orig_response_A", "orig_response_B", "orig_preference"),
        "votes",
        Columns(prompt="orig_instruction", left="orig_response_A", right="orig_response_B", label="orig_preference"),
    ),
    Schema(
        "OpenAI preferences",
        ("input", "preferred_output", "non_preferred_output"),
        "preferences",
        Columns(prompt="prompt", chosen="preferred_output", rejected="non_preferred_output"),
        prepare=_asked_of_openai,
        makes=("prompt", "tools"),
    ),
    *(
        Schema(
            "chosen and rejected with scores",
            ("chosen", "rejected", *pair),
            "preferences",
            prepare=_scored,
            makes=("strength",),
            is_scored=True,
        )
        for pair in SCORES
    ),
    Schema("chosen and rejected", ("chosen", "rejected"), "preferences"),
    Schema("votes", ("left", "right", "label"), "votes", knows_sides=True),
    Schema(
        "rankings",
        ("prompt", "answers"),
        "other",
        refusal="it ranks several answers per row (answers with ranks); write each two of them as chosen and rejected",
    ),
    Schema(
        "rated completions",
        ("instruction", "completions"),
        "other",
        refusal="it rates several completions per row; write two of each as chosen and rejected",
    ),
    Schema(
        "message trees",
        ("message_id", "parent_id", "text", "role"),
        "other",
        refusal="each row is one message of a tree; join siblings by parent_id, and write two of each, by rank, as "
        "chosen and rejected",
    ),
    Schema(
        "rated responses",
        ("prompt", "response", "helpfulness"),
        "other",
        refusal="each row is one rated response; join two of each prompt and write them as chosen and rejected",
    ),
    Schema(
        "graded responses",
        ("orig_instruction", "orig_response", "orig_score"),
        "other",
        refusal="each row is one graded response; join two of each instruction and write them as chosen and rejected",
    ),
    Schema(
        "thumbs",
        ("prompt", "completion", "label"),
        "other",
        refusal="each row is one completion with a thumb; join a good and a bad one of each prompt and write them as "
        "chosen and rejected",
    ),
    Schema(
        "demonstrations",
        ("prompt", "completion"),
        "other",
        refusal="each row is one answer and no comparison; 'align sft' reads demonstrations",
    ),
    Schema(
        "demonstrations",
        ("messages",),
        "other",
        refusal="each row is one dialogue and no comparison; 'align sft' reads demonstrations: write its last answer "
        "as completion and what comes before it as prompt",
    ),
)


def schema_of(known: Collection[str]) -> Schema | None:
    """The first schema all of whose signs are columns."""
    return next((schema for schema in SCHEMAS if set(schema.signs) <= set(known)), None)
