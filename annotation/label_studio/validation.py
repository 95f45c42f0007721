"""Check by the SDK, before anything is sent, that Label Studio accepts a labelling interface and its tasks.

In: the configuration of an interface, and the data of tasks. Out: nothing, or BadInput that names what is wrong. The
server itself checks tags and the fields of tasks only when a project holds them already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align.core.config import BadInput


def check_interface(config: str, tasks: Iterable[Mapping[str, Any]] = ()) -> None:
    """Refuse an interface that Label Studio would refuse, or tasks that lack what it shows.

    Raises:
        BadInput: the configuration is not valid, or a task has no value for one of its fields.
    """
    from label_studio_sdk.label_interface import LabelInterface

    try:
        interface = LabelInterface(config)
        interface.validate()
    except Exception as error:  # of the SDK, of its XML parser, or of its own reading of the tags
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"Label Studio does not accept the labelling interface ({reason}); mend its tags") from None
    for data in tasks:
        if not interface.validate_task({"data": data}):
            fields = [shown.value_name for shown in interface.objects if shown.value_is_variable]
            missing = ", ".join(name for name in fields if data.get(name) is None)
            raise BadInput(f"task {data.get('pair_id')}: lacks what the labelling interface shows: {missing}")
