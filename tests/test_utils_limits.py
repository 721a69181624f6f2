"""What a file may unpack to."""

import re
import zipfile

import pytest
from ekg_tf.utils import limits
from ekg_tf.utils.errors import UserError

GIB = 2**30


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv(limits.UNPACKED, raising=False)
    monkeypatch.setattr(limits, "machine_bytes", lambda: 64 * GIB)
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    return path


def test_a_file_may_unpack_to_a_gibibyte_or_a_multiple_but_not_to_all_memory(file):
    assert limits.most() == 32 * GIB
    assert limits.most(1000) == GIB
    assert limits.most(GIB) == 32 * GIB, "a network of a GB"
    assert limits.most(100 * 2**20) == 3200 * 2**20
    limits.check(GIB, file)
    with pytest.raises(UserError, match=r"file would take 1 GiB .* than the 1 GiB"):
        limits.check(GIB + 1, file)


def test_the_environment_raises_it_as_the_message_says(file, monkeypatch):
    with pytest.raises(UserError) as refused:
        limits.check(40 * GIB + 5, file)
    wanted = re.search(rf"{limits.UNPACKED} in the environment to (\d+)", str(refused.value))[1]
    assert wanted == "41"
    monkeypatch.setenv(limits.UNPACKED, wanted)
    limits.check(40 * GIB + 5, file)


def test_shares_are_of_the_machine(file, monkeypatch):
    limits.check(4 * GIB, file, share=limits.IMAGE)
    with pytest.raises(UserError, match=r"takes 5 GiB .* the 4 GiB .* to 40 or more"):
        limits.check(5 * GIB, file, share=limits.IMAGE, what="takes")
    monkeypatch.setenv(limits.UNPACKED, "40")
    limits.check(5 * GIB, file, share=limits.IMAGE)


@pytest.mark.parametrize("said", ["", "much", "-1", "0", "nan", "inf"])
def test_an_environment_that_says_nothing(said, file, monkeypatch):
    monkeypatch.setenv(limits.UNPACKED, said)
    with pytest.raises(UserError, match="a number of GiB is expected"):
        limits.check(1, file)


def test_an_archive_is_measured_by_its_directory(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**20))
    limits.check_zip(file)
    data = bytearray(file.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (2**32 - 2).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(UserError, match="would take 4 GiB"):
        limits.check_zip(file)
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="zeros is longer than the directory says"):
        limits.check_zip(file)
