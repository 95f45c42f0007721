"""Published preference data: one importer per schema, known by its columns."""

from __future__ import annotations

from annotation.importers.columns import Columns, Labels, number_of, text_of, word_of
from annotation.importers.imported import UnusableRow
from annotation.importers.importer import Importer, Row
from annotation.importers.turns import decoded

SIGNED = Labels(left=("-3", "-2", "-1"), right=("1", "2", "3"), tie=("0",))  # below 0: the first is better
ONE_HOT = {"winner_model_a": "left", "winner_model_b": "right", "winner_tie": "tie"}
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


class ArenaConversations(Importer):
    """Conversations of two models, and the winner by side or by the name of its model."""

    layouts = (("conversation_a", "conversation_b", "winner"),)
    columns = Columns(
        left="conversation_a", right="conversation_b", label="winner", annotator="judge", id="question_id"
    )
    knows_sides = True

    def rewrite(self, row: Row) -> Row:
        names = [text_of(row.get(column, "")) for column in ("model_a", "model_b")]
        winner = text_of(row.get("winner", ""))
        return {"winner": ("left", "right")[names.index(winner)]} if winner and names.count(winner) == 1 else {}


class ArenaTableWithWinner(ArenaConversations):
    """Responses of two models, and the winner by side or by the name of its model."""

    layouts = (("response_a", "response_b", "winner"),)
    columns = Columns(left="response_a", right="response_b", label="winner", annotator="judge")


class ArenaTable(Importer):
    """Responses of two models, and one column per outcome that holds 1 or 0."""

    layouts = (("response_a", "response_b", *ONE_HOT),)
    columns = Columns(left="response_a", right="response_b")
    knows_sides = True
    makes = ("label",)

    def rewrite(self, row: Row) -> Row:
        chosen = [outcome for column, outcome in ONE_HOT.items() if word_of(row.get(column, "")) in ("1", "true")]
        if len(chosen) != 1:
            values = ", ".join(f"{column}: {text_of(row.get(column, 'empty'))}" for column in ONE_HOT)
            raise UnusableRow(f"not one winner ({values})")
        return {"label": chosen[0]}


class HelpSteer2(Importer):
    """Two responses and a signed strength of preference."""

    layouts = (("response_1", "response_2", "preference_strength"),)
    columns = Columns(
        left="response_1", right="response_2", label="preference_strength", strength="preference_strength"
    )
    labels = SIGNED


class HelpSteer3(Importer):
    """A dialogue with two responses and a signed overall preference."""

    layouts = (("context", "response1", "response2", "overall_preference"),)
    columns = Columns(
        prompt="context",
        left="response1",
        right="response2",
        label="overall_preference",
        strength="overall_preference",
    )
    labels = SIGNED


class SHP(Importer):
    """Stanford human preferences: two comments on a post, of which one was voted higher."""

    layouts = (("history", "human_ref_A", "human_ref_B", "labels"),)
    columns = Columns(prompt="history", left="human_ref_A", right="human_ref_B", label="labels")
    labels = Labels(left=("1",), right=("0",))


class SafeRLHF(Importer):
    """PKU-SafeRLHF: two responses and the number of the more helpful one."""

    layouts = (("response_0", "response_1", "better_response_id"),)
    columns = Columns(left="response_0", right="response_1", label="better_response_id")
    labels = Labels(left=("0",), right=("1",))


class AlpacaEval(Importer):
    """Two outputs and a preference: 1 is the first, 2 the second, between them a probability; 1.5 and 0 are ties."""

    layouts = (("instruction", "output_1", "output_2", "preference"),)
    columns = Columns(prompt="instruction", left="output_1", right="output_2")
    makes = ("label",)

    def rewrite(self, row: Row) -> Row:
        preference = number_of(row.get("preference"))
        if preference is None or not (preference == 0 or 1 <= preference <= 2):
            return {}
        return {"label": "tie" if preference in (0, 1.5) else "left" if preference < 1.5 else "right"}


class LLMBar(Importer):
    """Two outputs, and the number of the better one."""

    layouts = (("input", "output_1", "output_2", "label"),)
    columns = Columns(prompt="input", left="output_1", right="output_2")
    labels = Labels(left=("1",), right=("2",))


class WebGPT(Importer):
    """Two answers with a score each: the higher one is better, by the difference."""

    layouts = (("question", "answer_0", "answer_1", "score_0", "score_1"),)
    columns = Columns(prompt="question.full_text", left="answer_0", right="answer_1")
    makes = ("label", "strength")
    is_scored = True

    def rewrite(self, row: Row) -> Row:
        first, second = (number_of(row.get(column)) for column in ("score_0", "score_1"))
        if first is None or second is None:
            raise UnusableRow("no score (score_0 or score_1 is no number)")
        gap = first - second
        return {"label": "left" if gap > 0 else "right" if gap < 0 else "tie", "strength": abs(gap)}


class SummaryComparisons(Importer):
    """OpenAI's comparisons of summaries, with the words that ask for one as their paper writes them."""

    layouts = (("info", "summaries", "choice"),)
    columns = Columns(label="choice", annotator="worker")
    labels = Labels(left=("0",), right=("1",))
    makes = ("prompt", "left", "right")

    def rewrite(self, row: Row) -> Row:
        info, summaries = decoded(row.get("info")), decoded(row.get("summaries"))
        if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
            raise UnusableRow("no post with two summaries (info, summaries)")
        post = info.get("post")
        prompt = (
            f"SUBREDDIT: r/{info.get('subreddit', '')}\nTITLE: {info.get('title', '')}\nPOST: {post}\nTL;DR:"
            if post
            else f"Article: {info.get('article', '')}\nTL;DR:"
        )
        left, right = (summary.get("text") if isinstance(summary, dict) else None for summary in summaries)
        return {"prompt": prompt, "left": left, "right": right}


class Prometheus(Importer):
    """Two responses and the letter of the better one."""

    layouts = (("orig_instruction", "orig_response_A", "orig_response_B", "orig_preference"),)
    columns = Columns(
        prompt="orig_instruction", left="orig_response_A", right="orig_response_B", label="orig_preference"
    )


class OpenAIPreferences(Importer):
    """OpenAI's format for preference tuning: the request whose two answers are compared, with its tools."""

    layouts = (("input", "preferred_output", "non_preferred_output"),)
    holds = "preferences"
    columns = Columns(prompt="prompt", chosen="preferred_output", rejected="non_preferred_output")
    makes = ("prompt", "tools")

    def rewrite(self, row: Row) -> Row:
        request = decoded(row.get("input"))
        if not isinstance(request, dict) or "messages" not in request:
            raise UnusableRow("no request with messages (input)")
        return {"prompt": request["messages"], "tools": request.get("tools") or []}


class ScoredChosenRejected(Importer):
    """A better and a worse response with scores, whose difference is the strength where no other one is given."""

    layouts = tuple(("chosen", "rejected", *scores) for scores in SCORES)
    holds = "preferences"
    makes = ("strength",)
    is_scored = True

    def rewrite(self, row: Row) -> Row:
        if "strength" in row or "margin" in row:
            return {}
        for better, worse in SCORES:
            high, low = number_of(row.get(better)), number_of(row.get(worse))
            if high is not None and low is not None:
                return {"strength": round(high - low, 9)}
        return {}


class ChosenRejected(Importer):
    """A better and a worse response."""

    layouts = (("chosen", "rejected"),)
    holds = "preferences"


class LabelledSides(Importer):
    """Two responses as they were shown, and a label."""

    layouts = (("left", "right", "label"),)
    knows_sides = True
