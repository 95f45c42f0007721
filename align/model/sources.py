"""Find the base, the adapter and the chat template of a policy, given its run or folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from align.core.config import BadInput, Template
from align.core.hashes import has_other_text
from align.core.run_record import finished_run, is_run
from align.model.tuners.tuner import read_adapter
from align.model.weights import read_object, refuse_second_adapter


class Source(NamedTuple):
    """The folders of a policy: its base and, where it has one, its adapter."""

    base: Path
    adapter: Path | None


def find_source(path: Path) -> Source:
    """Resolve a run folder, a model folder or an adapter folder to a base and an adapter.

    An adapter is used only where the user named its folder or its run; an adapter inside a model folder is refused.

    Raises:
        BadInput: neither a finished run nor a local model or adapter folder. Nothing is looked up on a network.
    """
    if is_run(path):
        record = finished_run(path)
        if (path / "model").is_dir():
            return Source(path / "model", None)
        if not (path / "adapter").is_dir():
            raise BadInput(f"{path}: a run of '{record.stage}' holds no policy (no adapter/ or model/)")
        return _on_its_base(path / "adapter")
    if (path / "config.json").is_file():
        refuse_second_adapter(path)
        return Source(path, None)
    if (path / "adapter_config.json").is_file():
        return _on_its_base(path)
    raise BadInput(f"{path}: neither a run folder (run.json) nor a local model folder (config.json)")


def find_policy(path: Path) -> Source:
    """Find a policy as :func:`find_source` does, and refuse what generates no responses.

    Raises:
        BadInput: it is a reward or value model (an adapter with its own head), or :func:`find_source` refuses it.
    """
    is_reward = is_run(path) and finished_run(path).stage == "reward"
    source = None if is_reward else find_source(path)
    if source is None or (source.adapter is not None and (source.adapter / "head.safetensors").is_file()):
        raise BadInput(f"{path}: a reward run is no policy; name an sft, dpo or ppo run, or a model folder")
    return source


def _on_its_base(adapter: Path) -> Source:
    base = read_adapter(adapter).base
    if not (base / "config.json").is_file():
        raise BadInput(
            f"{adapter / 'adapter_config.json'}: key base_model_name_or_path: '{base}' is no local model folder; "
            "put the base there or write the path where it lies (nothing is fetched from a hub)"
        )
    return Source(base, adapter)


def template_of(path: Path, configured: Template) -> Template:
    """Return the chat template to use with a policy: the configured one, else the one that its run was trained with.

    Where the template is inherited, so is each argument that is not configured; the day is inherited with any template.

    Raises:
        BadInput: the template is a file that was changed since the run read it, or an adapter folder has a template or
            an end token that differs from its base's.
    """
    if not is_run(path):
        _refuse_other_end(path)
        own = _own_template(path) if configured.name is None and (path / "adapter_config.json").is_file() else None
        if own is not None and own != _own_template(find_source(path).base):
            raise BadInput(
                f"{path}: brings a chat template that is not its base's; set chat_template to the one it was trained "
                f"with ({path / 'chat_template.jinja'}, where it lies there as a file)"
            )
        return configured
    parent = finished_run(path)
    inherited = parent.resolved.get("chat_template")
    known = parent.template.get("template_sha256")
    if inherited and configured.name in (None, inherited) and has_other_text(Path(inherited), known):
        raise BadInput(
            f"chat_template: {inherited}: has other content than when {path} was trained; put that back, or name "
            "another file for what is meant now"
        )
    arguments = parent.template.get("template_arguments", {})
    if configured.name not in (None, inherited):
        arguments = {name: value for name, value in arguments.items() if name == "date"}
    return configured._replace(name=configured.name or inherited, arguments={**arguments, **configured.arguments})


def _own_template(folder: Path) -> str | None:
    """Return the chat template of a folder, from its own file or from the tokenizer's settings."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    text = read_object(settings).get("chat_template") if settings.is_file() else None
    return text.strip() if isinstance(text, str) else None


def _refuse_other_end(folder: Path) -> None:
    """Refuse an adapter folder whose tokenizer has another end token than its base's tokenizer, which is the one used.

    Further tokens beyond the base's vocabulary are allowed: many trainers add a padding token.
    """
    if not (folder / "adapter_config.json").is_file():
        return
    own, base = _end_of(folder), _end_of(find_source(folder).base)
    if own is not None and base is not None and own != base:
        raise BadInput(
            f"{folder / 'tokenizer_config.json'}: ends answers with {own}, and the tokenizer of its base, which is "
            f"used, with {base}; put the tokenizer that it was trained with into the base's folder, or remove this file"
        )


def _end_of(folder: Path) -> str | None:
    """Return the end token in a folder's tokenizer settings, or None."""
    settings = folder / "tokenizer_config.json"
    named = read_object(settings).get("eos_token") if settings.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def on_the_day_of(configured: Template, paths: Iterable[Path | None]) -> Template:
    """Return the configured template, with the day of the first of these runs whose template printed a day."""
    records = (finished_run(path) for path in paths if path is not None and is_run(path))
    days = (record.template.get("template_arguments", {}).get("date") for record in records)
    return configured._replace(day=next((day for day in days if day), configured.day))
