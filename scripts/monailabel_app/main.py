"""A MONAI Label app that serves what a campaign asks for.

    monailabel start_server --app scripts/monailabel_app --studies RUN --host 127.0.0.1

RUN is a run folder with oracle=person, whose newest request is served, or a request folder. The
next sample is the next one in the order of the request, the model ``proposal`` gives the stored
proposal, and a label that is saved comes to ``labels/final``, from where the run takes it in.
docs/other_tools.md shows how it is used.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from request_folder import RequestError, RequestFolder

HELD_SECONDS = 30 * 60  # for which a sample is not given to another client
NOBODY = "user-xyz"  # what 3D Slicer's module calls a client until somebody gives it a name


def refuse(reason: object) -> NoReturn:
    """Answer a client with a sentence instead of a trace.

    Raises:
        HTTPException: always; its status is 400.
    """
    raise HTTPException(status_code=400, detail=str(reason))


class RequestStore(Datastore):
    """The volumes and labels of a request; images and proposals are never changed.

    Args:
        place: a run folder or a request folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def request(self) -> RequestFolder:
        """The request as it is now: a run may have laid out another one since."""
        try:
            return RequestFolder.at(self.place)
        except RequestError as error:
            refuse(error)

    def name(self) -> str:
        """The name of the request."""
        return self.request.folder.name

    def description(self) -> str:
        """Whose request it is."""
        return f"What {self.place} asks for"

    def list_images(self) -> list[str]:
        """All cases, the most useful first."""
        return list(self.request.images)

    def get_labeled_images(self, label_tag: str | None = None, labels: Any = None) -> list[str]:
        """The cases that need no further label."""
        return self.request.labelled()

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Any = None) -> list[str]:
        """The cases that need a label, the most useful first."""
        request = self.request
        done = set(request.labelled())
        return [case_id for case_id in request.images if case_id not in done]

    def get_image_uri(self, image_id: str) -> str:
        """The image file of a case; of several channels the first."""
        try:
            return str(self.request.image(image_id))
        except RequestError as error:
            refuse(error)

    def get_image(self, image_id: str, params: Any = None) -> bytes:
        """The content of the image file of a case."""
        return Path(self.get_image_uri(image_id)).read_bytes()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Path and file name of the image of a case."""
        path = self.get_image_uri(image_id)
        return {"path": path, "name": Path(path).name}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label, ``original`` for the proposal; empty without one."""
        return self._labels(self.request, label_id).get(label_tag, "")

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> bytes | None:
        """The content of the file of a label; None without one."""
        path = self.get_label_uri(label_id, label_tag)
        return Path(path).read_bytes() if path else None

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """The file name of a label."""
        path = self.get_label_uri(label_id, label_tag)
        return {"name": Path(path).name} if path else {}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The tags for which a case has a label; its name is the case's."""
        return dict.fromkeys(self._labels(self.request, image_id), image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The name of the label of a case; empty without one."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """Hand in a label; the run checks it when it takes it in."""
        if label_tag != DefaultLabelTag.FINAL:
            refuse(f"labels are saved with the tag {DefaultLabelTag.FINAL.value}, not {label_tag}")
        segments = [each["name"] for each in label_info.get("label_info", ())]
        client = str(label_info.get("client_id", NOBODY))
        annotator = "" if client == NOBODY else client
        try:
            self.request.save_label(image_id, Path(label_filename), segments, annotator)
        except RequestError as error:
            refuse(error)
        return image_id

    def datalist(self) -> list[dict[str, Any]]:
        """The cases that have a label, with their files."""
        request = self.request
        return [
            {"image": str(request.image(case_id)), "label": str(label)}
            for case_id in request.images
            if (label := request.label(case_id))
        ]

    def status(self) -> dict[str, Any]:
        """How many cases there are, and how many need no further label."""
        request = self.request
        return {"total": len(request.images), "completed": len(request.labelled())}

    def json(self) -> dict[str, Any]:
        """All cases with their labels, as MONAI Label's own store describes them."""
        request = self.request
        objects = {
            case_id: {
                "image": {"ext": "", "info": {"name": path.name}},
                "labels": {
                    tag: {"ext": "", "info": {"name": Path(label).name}}
                    for tag, label in self._labels(request, case_id).items()
                },
            }
            for case_id, path in request.images.items()
        }
        return {"name": request.folder.name, "objects": objects}

    def refresh(self) -> None:
        """Nothing is kept in memory."""

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Keep nothing: MONAI Label notes here when it has given a sample to whom."""

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        """Refuse."""
        refuse("a request keeps nothing of a label except the label")

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Refuse."""
        refuse("a request takes no further images: add them to the data set")

    def remove_image(self, image_id: str) -> None:
        """Refuse."""
        refuse("images of a request are not removed")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Refuse."""
        refuse("labels are not removed: save another one in its place")

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Refuse."""
        refuse("a request is not sent as an archive: copy its folder")

    def set_name(self, name: str) -> None:
        """Refuse."""
        refuse("a request has its name from the run")

    def set_description(self, description: str) -> None:
        """Refuse."""
        refuse("a request has its description from the run")

    def _labels(self, request: RequestFolder, case_id: str) -> dict[str, str]:
        """The files of a case by their tags."""
        try:
            files = {
                DefaultLabelTag.ORIGINAL.value: request.proposal(case_id),
                DefaultLabelTag.FINAL.value: request.label(case_id),
            }
        except RequestError as error:
            refuse(error)
        return {tag: str(path) for tag, path in files.items() if path is not None}


class OrderOfRequest(Strategy):
    """Gives the most useful sample that has no label yet, each to one client at a time."""

    def __init__(self) -> None:
        super().__init__("The most useful volume that has no label yet")
        self._held: dict[str, tuple[object, float]] = {}  # client, and until when

    def __call__(self, request: Mapping[str, Any], datastore: RequestStore) -> dict[str, str]:
        """The next case for a client; empty when none is left for it."""
        client, now = request.get("client_id"), time.monotonic()
        self._held = {case: held for case, held in self._held.items() if held[1] > now}
        others = [case for case, (holder, _) in self._held.items() if holder != client]
        case_id = datastore.request.next_case(others)
        if case_id is None:
            return {}
        self._held[case_id] = (client, now + HELD_SECONDS)
        return {"id": case_id}


class Proposal(InferTask):
    """Gives the segmentation that the run has proposed.

    Args:
        store: where it lies.
    """

    def __init__(self, store: RequestStore) -> None:
        super().__init__(
            InferType.SEGMENTATION,
            labels=store.request.classes,
            dimension=3,
            description="The segmentation that the run proposes",
        )
        self.store = store

    def is_valid(self) -> bool:
        """Whether there are proposals; the first request has none."""
        request = self.store.request
        return any(request.proposal(case_id) for case_id in request.images)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """A copy of the proposal, which the server deletes once it is sent, and the class names."""
        asked = self.store.request
        image = str(request["image"])  # a path; or the case, if a file of its name is at hand
        found = (i for i, path in asked.images.items() if image in (i, str(path)))
        case_id = next(found, None)
        proposal = None if case_id is None else asked.proposal(case_id)
        if proposal is None:
            refuse(f"there is no proposal of {case_id or image}")
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as copy:
            copy.write(proposal.read_bytes())
        return copy.name, {"label_names": asked.classes}


class CampaignApp(MONAILabelApp):
    """Serves a campaign's request; see the beginning of this file."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name="alseg",
            description="What an alseg campaign asks for",
            labels=list(RequestFolder.at(Path(studies)).classes),
        )

    def init_datastore(self) -> RequestStore:
        """The request as a data store."""
        return RequestStore(Path(self.studies))

    def init_infers(self) -> dict[str, InferTask]:
        """The proposal, as if a network were asked."""
        return {"proposal": Proposal(self._datastore)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The order of the request."""
        return {"alseg": OrderOfRequest()}
