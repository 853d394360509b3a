"""How many bytes the checkpoints of a folder have, and what evicting each would free.

Others may refer to its tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from flor_plugins.records import Position
from flor_plugins.store.checkpoints.tombstones import TensorKey
from flor_plugins.store.gc.replay_cost import CheckpointForm


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """What the folder of one checkpoint holds.

    rest: bytes of all but what only its optimizer section needs; optimizer: of that. tensors:
    bytes of each tensor that lies here. uses, optimizer_uses: tensors of other checkpoints.
    of_optimizer: keys that lie in the files of `optimizer`. frame: bytes around the tensors if
    only some of them stay.
    """

    rest: int
    optimizer: int = 0
    tensors: Mapping[str, int] = field(default_factory=dict)
    of_optimizer: frozenset[str] = frozenset()
    frame: int = 0
    uses: frozenset[TensorKey] = frozenset()
    optimizer_uses: frozenset[TensorKey] = frozenset()


class CheckpointSizes:
    """The checkpoints of one process of a run as they would be if some were given up.

    forms: what is there of each now; one that is "gone" keeps what others refer to.
    """

    def __init__(
        self,
        contents: Mapping[Position, CheckpointContent],
        forms: Mapping[Position, CheckpointForm],
    ) -> None:
        self.contents = dict(contents)
        self.forms: dict[Position, CheckpointForm] = {
            position: forms.get(position, "gone") for position in contents
        }
        self._refers: dict[Position, Counter[str]] = {}
        for position, form in self.forms.items():
            self._count(self._used(position, form), 1)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all of them."""
        return sum(map(self.nbytes_of, self.contents))

    def nbytes_of(self, position: Position) -> int:
        """Bytes of one folder, in its present form."""
        content, form, kept = self.contents[position], self.forms[position], self.kept(position)
        if form == "gone":
            nbytes = sum(content.tensors.get(key, 0) for key in kept)
            # A file of which nearly all is needed stays as it is.
            return (
                min(nbytes + nbytes // 9 + content.frame, content.rest + content.optimizer)
                if kept
                else 0
            )
        if form == "full" or kept & content.of_optimizer:
            return content.rest + content.optimizer
        return content.rest

    def is_left_over(self, position: Position) -> bool:
        """Say whether there are files of its optimizer that nobody needs any more."""
        content = self.contents[position]
        return content.optimizer > 0 and not self.kept(position) & content.of_optimizer

    def kept(self, position: Position) -> set[str]:
        """The tensors of a checkpoint that others refer to."""
        used = self._refers.get(position, Counter())
        return {key for key, users in used.items() if users}

    def freed(self, position: Position, form: CheckpointForm) -> int:
        """How many bytes less there would be if a checkpoint had another form."""
        if position not in self.forms:
            return 0
        before = self.forms[position]
        touched = {
            position,
            *(owner for owner, _ in self._used(position, before) ^ self._used(position, form)),
        }
        touched &= self.contents.keys()
        now = sum(map(self.nbytes_of, touched))
        self.put(position, form)
        then = sum(map(self.nbytes_of, touched))
        self.put(position, before)
        return now - then

    def put(self, position: Position, form: CheckpointForm) -> None:
        """From now on the checkpoint has this form."""
        if position in self.forms:
            self._count(self._used(position, self.forms[position]), -1)
            self._count(self._used(position, form), 1)
            self.forms[position] = form

    def owners(self, position: Position) -> set[Position]:
        """The checkpoints of which this one uses tensors in its present form."""
        return (
            {owner for owner, _ in self._used(position, self.forms[position])}
            if position in self.forms
            else set()
        )

    def _used(self, position: Position, form: CheckpointForm) -> frozenset[TensorKey]:
        content = self.contents[position]
        if form == "gone":
            return frozenset()
        return content.uses | content.optimizer_uses if form == "full" else content.uses

    def _count(self, tensors: frozenset[TensorKey], by: int) -> None:
        for owner, key in tensors:
            self._refers.setdefault(owner, Counter())[key] += by
