import pytest

from onnxqat.process import processor


@pytest.mark.parametrize(
    ("flags", "said"),
    [("avx2 avx512_vnni", "with VNNI"), ("avx2 avx_vnni", "with VNNI"), ("avx2 fma", "without VNNI")],
)
def test_the_processor_is_named_with_what_decides_on_its_integers(tmp_path, monkeypatch, flags, said):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Some Processor 9\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", file)
    named = processor.processor()
    assert named.startswith("Some Processor 9, ")
    assert named.endswith(f" cores, {said}")


def test_a_processor_without_such_a_file_is_named_by_python(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert "VNNI" not in processor.processor()
