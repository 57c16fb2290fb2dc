"""TFRecord files by index: against TensorFlow's bytes and tensorboardX's writer, and damage of every byte."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import crc32c as reference
from tensorboardX.record_writer import RecordWriter

from tresnet_jax.data.tfrecord import BLOCK, FilePart, crc32c, open_tfrecords
from tresnet_jax.errors import DataError, ImageError

# Written by tf.io.TFRecordWriter of TensorFlow 2.21: b'' and b'123456789'.
TENSORFLOW = bytes.fromhex('0000000000000000 29039807 d8ea82a2 0900000000000000 37f97139 313233343536373839 e5b08ac7')


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (b'', 0),
        (b'123456789', 0xE3069283),
        # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b'\xff' * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_checksums(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize('size', [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
def test_checksums_of_blocks(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == reference.crc_finalize(reference.crc_update(reference.CRC_INIT, data))


@pytest.fixture
def files(tmp_path) -> list[list[bytes]]:
    """Write the files 0 to 2 and return their records: 5, 1 and 4 records of 0 to 2,000 bytes."""
    rng = np.random.default_rng(0)
    records = [[rng.bytes(int(size)) for size in rng.integers(0, 2000, count)] for count in (5, 1, 4)]
    records[0][1] = b''
    for number, part in enumerate(records):
        writer = RecordWriter(str(tmp_path / str(number)))
        for record in part:
            writer.write(record)
        writer.close()
    return records


def part(folder: Path, number: int, skip: int, take: int) -> FilePart:
    return FilePart(str(folder / str(number)), skip, take)


def test_bytes_of_tensorflow(tmp_path):
    (tmp_path / '0').write_bytes(TENSORFLOW)
    records = open_tfrecords([part(tmp_path, 0, 0, 2)], 'tiny')
    assert [records[0], records[1]] == [b'', b'123456789']


def test_records_by_index(tmp_path, files):
    parts = [part(tmp_path, 2, 1, 2), part(tmp_path, 0, 0, 5), part(tmp_path, 1, 0, 1), part(tmp_path, 0, 4, 1)]
    records = pickle.loads(pickle.dumps(open_tfrecords(parts, 'tiny')))
    expected = files[2][1:3] + files[0] + files[1] + files[0][4:]
    assert len(records) == len(expected) == 9
    for index in (8, 0, 3, 7, 2, 1, 6, 5, 4, 3):
        assert records[index] == expected[index]
    for index in (-1, 9):
        with pytest.raises(IndexError):
            records[index]


def test_every_damaged_byte_is_noticed(tmp_path):
    """A damaged length is noticed too, although its own checksum is not read."""
    path = tmp_path / '0'
    for at in range(len(TENSORFLOW)):
        if 8 <= at < 12 or 24 <= at < 28:  # checksums of lengths
            continue
        damaged = bytearray(TENSORFLOW)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises((DataError, ImageError), match='damaged') as caught:
            records = open_tfrecords([part(tmp_path, 0, 0, 2)], 'tiny')
            assert [records[0], records[1]]
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_damage_of_one_record_leaves_the_others(tmp_path):
    (tmp_path / '0').write_bytes(TENSORFLOW[:30] + b'x' + TENSORFLOW[31:])
    records = open_tfrecords([part(tmp_path, 0, 0, 2)], 'tiny')
    assert records[0] == b''
    with pytest.raises(ImageError, match=r'0: the record at byte 16 is damaged: its checksum does not match'):
        records[1]


def test_files_with_too_few_records(tmp_path, files):
    message = r'^tiny: .*/1: truncated or damaged at byte \d+: expected 2 records, found 1; copy or prepare it again$'
    with pytest.raises(DataError, match=message):
        open_tfrecords([part(tmp_path, 0, 0, 5), part(tmp_path, 1, 0, 2)], 'tiny')
    with pytest.raises(DataError, match='^tiny: .*/3: No such file or directory$'):
        open_tfrecords([part(tmp_path, 3, 0, 1)], 'tiny')
