import json
from importlib import metadata

from onnxqat import errors, runtime
from onnxqat.cli import doctor


def test_it_shows_the_machine_and_what_is_installed(call, tmp_path):
    status, shown, _ = call("doctor", "--json", tmp_path / "found.json")
    found = {one["name"]: one["here"] for one in json.loads((tmp_path / "found.json").read_text())}
    assert status == 0
    assert found["ONNX Runtime"].startswith("onnxruntime")
    assert "cpu" in found["providers"]
    assert found["engine of training"] in shown


def test_it_says_how_to_install_what_is_missing(call, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"some": (("no_such_module",), "something")})
    status, shown, _ = call("doctor")
    assert status == 0
    assert "pip install 'onnxqat[some]'" in shown


def test_packages_that_overwrite_each_other_are_wrong(call, monkeypatch):
    def overwritten():
        raise errors.InputError("two packages are installed side by side; run `pip uninstall one`")

    monkeypatch.setattr(runtime, "check_packages", overwritten)
    status, shown, _ = call("doctor")
    assert status == 1
    assert "run `pip uninstall one`" in shown


def test_it_knows_the_extras_that_users_install():
    extras = metadata.metadata("onnxqat").get_all("Provides-Extra")
    assert set(doctor.EXTRAS) == set(extras) - {"docs", "release", "dev"}
