"""What the doctor says of what it found; the whole of it against a real engine is in tests/integration."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sandbox_svc.doctor import Diagnosis, _engine, _image
from sandbox_svc.runtime.docker_engine import EngineFacts, Image
from sandbox_svc.runtime.languages import LANGUAGE_LABEL
from sandbox_svc.settings import default_settings


def diagnoses(settings: dict[str, str] | None = None, **facts: Any) -> dict[str, Diagnosis]:
    usual: dict[str, Any] = {"id": "x", "version": "20.10", "api_version": "1.41", "runtime": "runc", "cpus": 2}
    usual |= {"cgroup_version": "2", "memory_bytes": 8 * 2**30, "runtimes": ("runc",), "skew_seconds": 0.0}
    usual |= {"is_uid_mapped": False}
    found = _engine(EngineFacts(**usual | facts), default_settings(**settings or {}))
    return {diagnosis.subject: diagnosis for diagnosis in found}


def image(image_id: str, days: float, language: str = "python") -> Image:
    return Image(id=image_id, labels={LANGUAGE_LABEL: language}, tags=(), created_at=int(time.time() - days * 86_400))


def test_a_good_engine_is_ok_in_every_line():
    assert {diagnosis.state for diagnosis in diagnoses().values()} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "subject", "word"),
    [
        ({"warnings": ("swap is not limited",)}, "limits", "swap is not limited"),
        ({"skew_seconds": -3600.0}, "time", "-3600 s"),
        ({"memory_bytes": 2**30}, "memory", "more than there is"),
    ],
)
def test_what_is_amiss_is_a_warning_with_advice(facts, subject, word):
    diagnosis = diagnoses(**facts)[subject]

    assert diagnosis.state == "warning"
    assert word in diagnosis.detail
    assert diagnosis.advice


def test_an_image_is_named_by_its_generation_and_older_builds_are_counted():
    diagnosis = _image(
        "python", "sha256:new", [image("sha256:new", 1), image("sha256:old", 9), image("x", 1, "nodejs")]
    )

    assert diagnosis == Diagnosis("ok", "image python", "generation new, built 1 days ago, 1 older builds beside it")


def test_an_old_image_and_a_missing_one_come_with_what_to_do():
    assert _image("python", "sha256:a", [image("sha256:a", 90)]).state == "warning"
    assert _image("python", None, []) == Diagnosis("missing", "image python", "not there", "make images")
    assert "manifest" in _image("python", None, [image("sha256:a", 1)]).detail
