"""Files of a call: checked before the work begins, written when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from onnxqat.graph import files
from onnxqat.process.launch import rank
from onnxqat.terminal.plain import Terminal

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from onnxqat.config import Config

#: Standard output, for results.
console = Terminal()


def check(
    written: Sequence[Path] = (),
    *,
    json: Path | None = None,
    page: Path | None = None,
    settings: Path | None = None,
    lines: Path | None = None,
    inputs: Sequence[str | Path | None] = (),
    models: Sequence[Path | None] = (),
) -> None:
    """Checks what is read and written before anything large is loaded; where standard output gets a file, messages go elsewhere.

    Args:
        written: models to write.
        json: a report to write.
        page: a report for a browser to write.
        settings: a configuration to write.
        lines: a log to write.
        inputs: paths that are read, besides models.
        models: models that are read.
    """
    for model in filter(None, models):
        files.check_present(model)
    from onnxqat.graph import io

    outputs = [*((path, io.MODEL) for path in written), (json, files.JSON), (lines, files.JSON_LINES)]
    if settings is not None:
        outputs.append((settings, files.JSON))
    if page is not None:
        from onnxqat.page import HTML, check_page

        check_page()
        outputs.append((page, HTML))
    console.stderr = any(path is not None and files.is_standard_output(path) for path, _ in outputs)
    if rank() == 0:
        files.check_all(outputs, [*models, *inputs])


def saved(folder: Path | None) -> list[Path]:
    """The models that a run keeps in a folder, which is made where it is missing; refused where it cannot hold them."""
    if folder is None:
        return []
    from onnxqat.page import HTML, check_page
    from onnxqat.pipeline import saving

    check_page()
    saving.check_folder(folder)
    files.check_all(
        [(folder / saving.CONFIG, files.JSON), (folder / saving.RUN, files.JSON), (folder / saving.PAGE, HTML)]
    )
    return [folder / name for name in saving.MODELS]


def write(model: onnx.ModelProto | ir.Model, path: Path) -> None:
    """Writes a model and says so; of several processes, only the first does."""
    from onnxqat.pipeline.recovery import save

    if rank() == 0:
        save(model, path)
        console.print(f"wrote {path}")


def write_config(config: Config, path: Path | None) -> None:
    """Writes the settings that differ from the defaults, as JSON, where a path is given, and says so."""
    if path is not None:
        files.write_text(config.model_dump_json(indent=2, exclude_defaults=True), path, files.JSON)
        console.print(f"wrote {path}")


def write_page(text: str, path: Path) -> None:
    """Writes a report for a browser and says so."""
    from onnxqat.page import write

    write(text, path)
    console.print(f"wrote {path}")


class Reported(Protocol):
    """A report that programs read."""

    def to_json(self) -> str:
        """The report as JSON text."""


def write_report(report: Reported, path: Path | None) -> None:
    """Writes a report in JSON, where a path is given."""
    if path is not None:
        files.write_text(report.to_json(), path, files.JSON)
