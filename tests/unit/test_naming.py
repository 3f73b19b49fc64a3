"""The names by which callers know languages and their profiles."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sandbox_svc.errors import RuntimeUnavailable, UnknownLanguage
from sandbox_svc.runtime.docker_engine import Image
from sandbox_svc.runtime.docker_runtime import usable_languages, usable_manifest
from sandbox_svc.runtime.languages import LANGUAGE_LABEL, MANIFEST_LABEL, PROFILE_LABEL, TemplateChooser
from sandbox_svc.service.naming import LanguageNames
from tests.http_stack import language

OFFICE = language("python-office", "python3-office", profile="office")
NAMESAKE = language("bash-tools")
KNOWN = {one.name: one for one in (language("python", "python3"), OFFICE, language("bash"), NAMESAKE)}


@pytest.fixture
def names() -> LanguageNames:
    return LanguageNames((*KNOWN, "python-gone"), lambda: KNOWN)


@pytest.mark.parametrize(
    ("name", "profile", "expected"),
    [
        ("python", None, "python"),
        ("python3", None, "python"),
        ("python", "office", "python-office"),
        ("python3", "office", "python-office"),
        ("python-office", None, "python-office"),
        ("bash-tools", None, "bash-tools"),
    ],
)
def test_languages_and_profiles_have_names(names, name, profile, expected):
    assert names.name_of(name, profile) in ("-", expected)
    assert names.resolve(name, profile).name == expected
    assert names.name_of(name, profile) == expected


@pytest.mark.parametrize(
    ("name", "profile", "words"),
    [
        ("python", "spy", "profile must be one of office"),
        ("python-office", "office", "profile must be left out"),
        # It only looks like one: its image does not say that it is a profile.
        ("bash", "tools", "profile must be left out"),
        ("cobol", "office", "language must be one of bash, bash-tools, python, "),
        ("cobol", None, "language must be one of"),
    ],
)
def test_the_field_that_is_wrong_is_named(names, name, profile, words):
    with pytest.raises(UnknownLanguage, match=words):
        names.resolve(name, profile)


def test_a_profile_without_its_image_is_no_fault_of_the_caller(names):
    with pytest.raises(RuntimeUnavailable, match="python-gone is missing"):
        names.resolve("python", "gone")
    assert names.name_of("python", "gone") == "python-gone"


def test_a_profile_is_served_without_its_language():
    names = LanguageNames(("python-office",), lambda: KNOWN)

    assert names.resolve("python", "office").name == "python-office"
    with pytest.raises(UnknownLanguage, match="profile must be one of office"):
        names.resolve("python", "spy")


def test_labels_that_contradict_each_other_are_refused():
    labels = {LANGUAGE_LABEL: "python-office", MANIFEST_LABEL: msgspec.json.encode(OFFICE.manifest).decode()}

    image = Image(id="i", labels=labels | {PROFILE_LABEL: "office"}, tags=(), created_at=0)

    assert usable_manifest(image) == OFFICE.manifest
    with pytest.raises(RuntimeUnavailable, match="do not fit"):
        usable_manifest(msgspec.structs.replace(image, labels=labels | {PROFILE_LABEL: "other"}))


@pytest.mark.parametrize("pattern", [r"\u00e9", "(?u)x", "a{99999999999999999999}", "(" * 3000, "(?<=a+)b", "("])
def test_a_manifest_whose_pattern_is_none_costs_its_own_language_alone(pattern: str) -> None:
    """Some were found out when all languages had their names made, others ended the service."""
    fine: dict[str, Any] = {"source_name": "main.py", "templates": [{"name": "plain"}]}
    odd: dict[str, Any] = fine | {"templates": [{"name": "plain"}, {"name": "more", "when": pattern}]}
    images = []
    for name, manifest in (("python", fine), ("odd", odd)):
        text = msgspec.json.encode(manifest | {"language": name}).decode()
        labels = {LANGUAGE_LABEL: name, MANIFEST_LABEL: text}
        images.append(Image(id=name, labels=labels, tags=(), created_at=1))

    languages = usable_languages(images)

    assert set(languages) == {"python"}
    TemplateChooser(languages["python"].manifest)
