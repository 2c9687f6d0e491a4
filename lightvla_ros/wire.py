"""What can be read from a serialized message without its type: the stamp of its header. Pure; imports no ROS."""

from __future__ import annotations

import struct

# Bytes up to the end of the stamp: CDR's four, seconds and nanoseconds.
HEADER_STAMP_END = 12


def header_stamp(data: bytes) -> float:
    """Stamp, s, of a CDR message whose first field is a std_msgs/Header: it stands right behind CDR's four bytes.

    Raises struct.error for data too short to hold one.
    """
    little_endian = data[1] & 1 if len(data) > 1 else 1
    seconds, nanoseconds = struct.unpack_from("<iI" if little_endian else ">iI", data, 4)
    return float(seconds) + float(nanoseconds) * 1e-9
