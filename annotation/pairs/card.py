"""A folder to publish: the files of a pairs run, and a README that describes them and how they were made.

In: the rows by file name, and the run's account of itself. Out: ``card/`` with the same files and ``README.md``, whose
front matter tells ``datasets.load_dataset(FOLDER)`` the splits and column types; it gives the pairs, the other files
go by name (``load_dataset(FOLDER, "thumbs")``). No annotator is named, not even by pseudonym: the manifest, which
names them, stays behind. Column types are written out because two splits seldom hold the same optional fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.core.files import write_jsonl, write_text
from align.core.stats.estimates import Estimate
from annotation.pairs.products import FILES, ProductRow, columns
from annotation.store.ledger import guidelines
from annotation.store.store import Store

Rows = Sequence[ProductRow]

MESSAGES = ("prompt", "chosen", "rejected", "completion")
JSON = {"tools": {"list": "json"}, "template_arguments": {"dtype": "json"}}
TOKENS = {
    "struct": [
        {"name": "ids", "list": "int64"},
        {"name": "chat", "dtype": "string"},
        {"name": "exchange", "dtype": "string"},
    ]
}
TYPES: Mapping[str, Mapping[str, Any]] = {
    "margin": {"dtype": "float64"},
    "weight": {"dtype": "float64"},
    "votes": {"list": "int64"},
    "label": {"dtype": "string"},
    "split": {"dtype": "string"},
    "comparison_id": {"dtype": "string"},
    "prompt_id": {"dtype": "string"},
    **{f"{name}_ended": {"dtype": "bool"} for name in ("chosen", "rejected", "completion")},
    **{f"{name}_tokens": TOKENS for name in ("chosen", "rejected", "completion")},
}
OWN_TYPES = {("thumbs", "label"): {"dtype": "bool"}, ("labels", "votes"): {"dtype": "json"}}
NOTHING = hashlib.sha256().hexdigest()  # the guideline of a campaign that has none
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

METHODS = {
    "majority": "The answer with the most votes wins, and everybody's vote weighs alike; `weight` is 1.",
    "dawid-skene": "One-coin Dawid-Skene estimates how reliable each person is and which answer is true; `weight` is "
    "the winner's probability.",
    "bradley-terry": "Davidson's model gives each response a strength from all votes under its prompt; `weight` is the "
    "winner's probability.",
}
TIES = {
    "drop": "A tie is an answer that can win; such a comparison makes no pair.",
    "half": "A tie counts as half a vote for either side; what is even then makes no pair.",
}
COLUMNS = {
    "pairs": "`prompt`, `chosen`, `rejected` (messages); `votes` for chosen, for rejected, and ties; `margin`, the "
    "mean strength (0 to 3; of imported pairs, on their source's own scale) towards chosen, negative where those who "
    "disagreed were surer; `weight`.",
    "demonstrations": "`prompt`, `completion`: answers that people improved.",
    "thumbs": "`prompt`, `completion`, `label` (thumbs up or not) by majority; `votes` up and down.",
    "labels": "`prompt`, `completion`, `label` by majority (null where names lead together); `votes` by name; `split`.",
}
EDITED = (
    "A response that a person improved is also a pair, the improved text over the first one: one vote, margin 0, "
    "weight 1, in training only."
)
UNITS = "Reasons that name annotators, known answers or repeated questions count judgments, the others rows."


def write_card(
    folder: Path,
    outputs: Mapping[str, Rows],
    licence: str,
    languages: Sequence[str],
    manifest: Mapping[str, Any],
    alpha: Mapping[str, Any] | None,
    versions: Mapping[str, Sequence[int]],
) -> None:
    """Write the folder.

    Args:
        outputs: rows by file name; empty files are left out.
        alpha: a coefficient with its interval, as in agreement.json; None without votes.
        versions: the numbers under which campaigns know a guideline, by its hash.
    """
    kept = {name: rows for name, rows in outputs.items() if rows}
    for name, rows in kept.items():
        write_jsonl(folder / name, map(columns, rows))
    head = yaml.safe_dump(_front_matter(kept, licence, languages), sort_keys=False, allow_unicode=True)
    text = _text(kept, manifest, _agreement(alpha), _guidelines(manifest["guidelines"], versions))
    write_text(folder / "README.md", f"---\n{head}---\n\n{text}")


def guideline_versions(store: Store) -> dict[str, list[int]]:
    """Return the version numbers (from 1 in each campaign) of every guideline that campaigns showed, by its hash."""
    counted: dict[str, int] = {}
    versions: dict[str, set[int]] = {}
    for campaign, digest, _ in guidelines(store):
        counted[campaign] = counted.get(campaign, 0) + 1
        versions.setdefault(digest, set()).add(counted[campaign])
    return {digest: sorted(numbers) for digest, numbers in sorted(versions.items())}


def _front_matter(outputs: Mapping[str, Rows], licence: str, languages: Sequence[str]) -> dict[str, Any]:
    """Return what the hub and ``load_dataset`` read."""
    parts = _parts(outputs)
    n_rows = sum(len(rows) for rows in outputs.values())
    return {
        "license": licence,
        "language": list(languages),
        "size_categories": [next((name for limit, name in SIZES if n_rows < limit), "n>1M")],
        "tags": ["human-feedback", "preference"],
        "configs": [
            {
                "config_name": name,
                **({"default": True} if number == 0 else {}),
                "data_files": [{"split": split, "path": file} for split, file in files.items()],
            }
            for number, (name, files) in enumerate(parts.items())
        ],
        "dataset_info": [
            {
                "config_name": name,
                "features": _features(name, [row for file in files.values() for row in outputs[file]]),
            }
            for name, files in parts.items()
        ],
    }


def _parts(outputs: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of the files that there are by kind of row and split, pairs first."""
    present = set(outputs)
    kinds = {kind: {split: file for split, file in files.items() if file in present} for kind, files in FILES.items()}
    return {kind: files for kind, files in kinds.items() if files}


def _features(kind: str, rows: Rows) -> list[dict[str, Any]]:
    """Return types of the columns that any row has; messages with more than a role and a text are JSON."""
    names = dict.fromkeys(name for row in rows for name in columns(row))
    return [{"name": name, **_type(kind, name, rows)} for name in names]


def _type(kind: str, name: str, rows: Rows) -> Mapping[str, Any]:
    if name in MESSAGES:
        is_plain = all(
            set(message) == {"role", "content"} and isinstance(message["content"], str)
            for row in rows
            for message in getattr(row, name)
        )
        struct = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
        return {"list": struct if is_plain else "json"}
    return OWN_TYPES.get((kind, name)) or JSON.get(name) or TYPES[name]


def _text(outputs: Mapping[str, Rows], manifest: Mapping[str, Any], agreement: str, guidelines: str) -> str:
    parts = _parts(outputs)
    rows = "\n".join(
        f"| {kind} | {split} | {len(outputs[file])} | {len({row.prompt_id for row in outputs[file]})} |"
        for kind, files in parts.items()
        for split, file in files.items()
    )
    return "\n\n".join(
        [
            "# Judgments of people on answers of language models",
            f"{manifest['judgments']} judgments by {manifest['annotators']} people on {manifest['comparisons']} "
            "comparisons. `load_dataset` on this folder gives the first kind of row, others by name.",
            f"| rows | split | n | prompts |\n|---|---|---|---|\n{rows}",
            "\n".join(f"- {kind}: {COLUMNS[kind]}" for kind in parts),
            "`comparison_id` and `prompt_id` are hashes of the content. Where a response was sampled, `*_ended` says "
            "whether it ended and `*_tokens` holds its token ids, with hashes of the tokenizer and template and of the "
            "exchange that they belong to.",
            f"## How votes became rows\n\n{_policy(manifest)}",
            f"## Agreement\n\n{agreement}",
            f"## Guidelines\n\n{guidelines}",
            f"## Left out\n\n{_left_out(manifest)}",
            f"## Provenance\n\nsha256 of what was read: `{manifest['content_sha256']}`\n",
        ]
    )


def _policy(manifest: Mapping[str, Any]) -> str:
    policy = manifest["policy"]
    sentences = [METHODS[policy["method"]], TIES[policy["ties"]]]
    if policy.get("both_bad") == "drop":
        sentences.append("Where half the judgments or more call all answers bad, there is no pair.")
    sentences.append(f"A row needs {policy['min_votes']} or more votes.")
    if "edited_pairs" in manifest:
        sentences.append(EDITED)
    sentences.append("Answers to questions whose answer was known beforehand are not counted; nobody is counted twice.")
    sentences.append(
        f"Prompts are split, not rows: {100 * policy['validation']:g} % of them to validation and "
        f"{100 * policy['test']:g} % to test where nothing else was asked for (seed {policy['seed']}); prompts "
        "that differ in case, spaces or punctuation alone go together."
    )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _agreement(alpha: Mapping[str, Any] | None) -> str:
    if alpha is None or (estimate := Estimate.model_validate(alpha)).value is None:
        return "Not measured: no two people judged the same two answers, or all votes were alike."
    return (
        f"Krippendorff's alpha (nominal: first, second, tie) is {estimate} (95 % interval), over {alpha['n']} pairs "
        f"of answers with two votes or more ({alpha['votes']} votes). 1 is perfect agreement, 0 is chance."
    )


def _guidelines(counted: Mapping[str, int], versions: Mapping[str, Sequence[int]]) -> str:
    lines = []
    for digest, count in counted.items():
        numbers = " and ".join(map(str, versions.get(digest, ()))) or "not recorded"
        what = "an empty text" if digest == NOTHING else f"sha256 `{digest}`"
        lines.append(f"- {what}, version {numbers}: {count} judgments")
    return "\n".join(lines) or "No judgment carries the hash of a guideline."


def _left_out(manifest: Mapping[str, Any]) -> str:
    counted = {"pairs": manifest["dropped"]}
    kinds = ("edited_pairs", "demonstrations", "thumbs", "labels")
    counted |= {name: manifest[name]["dropped"] for name in kinds if name in manifest}
    lines = [
        f"| {name.replace('_', ' ')} | {reason} | {count} |"
        for name, reasons in counted.items()
        for reason, count in reasons.items()
        if count
    ]
    lines.append(f"| | comparisons that nobody judged | {manifest['without_judgment']} |")
    return "\n".join(["| of | reason | n |", "|---|---|---|", *lines]) + f"\n\n{UNITS}"
