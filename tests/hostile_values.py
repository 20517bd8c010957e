"""Numbers and texts that a user may give an option, and most programs forget."""

from hypothesis import strategies as st

HOSTILE = [
    "nan", "-nan", "inf", "-inf", "infinity", "1e308", "-1e308", "1e999", "3.5e38", "1e-320", "-0", "0", "-1", "1", "2",
    "0.5", "12345678901234567890", "-12345678901234567890", "9223372036854775807", "9223372036854775808", "4294967296",
    "4294967295", "1_000", "0x10", "1e3", "", " ", "٣", "１２", "9" * 5000, "--", "none", "true", "(1,", "1,2", "\0",
    "é", "1e-300", "1e-16", "0.9999999999999999", "0.999999", "0.000001", "3e38", "-3e38", "1000000000", "50x50",
    "0.5x50", "1e-9x1e9", "nanx2",
]  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.integers().map(str) | st.floats().map(repr) | st.text(max_size=20)
