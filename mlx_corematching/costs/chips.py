"""Apple's M-series chips, M1 to M5: memory bandwidth (GB/s) and GPU rate (TFLOPS, FP32).

Bandwidth and GPU cores. None of Apple's pages was fetched for this table: its URLs are where
the figures can be checked. The figures themselves were read in archived copies of press reports
and of other people's tables that quote those pages (M5 Ultra and the two M5 Max: a transcript of
Apple's specifications). Two chips need a word:

* M1: Apple states no bandwidth; 68.25 is LPDDR4X-4266 on 128 bits, the figure others list.
* M5 Ultra: Apple rounds to 1.2 TB/s, which is 1200 here; Wikipedia has 1228.8.

GPU rate. Apple stated it for the M1, the M1 Pro and the M1 Max with all their cores (read in
press reports of the announcements). All others are estimates, GPU cores x 128 ALUs x 2
operations (a fused multiply-add) x the highest GPU clock that macOS reports:

* M1 1278 MHz, M1 Pro/Max/Ultra 1296 MHz, M2 family 1398 MHz
* M3 1338 MHz, M3 Pro/Max/Ultra 1380 MHz, M4 family 1578 MHz, M5 family 1620 MHz

These clocks were read in archived output of `powermetrics`, `fastfetch` or `applegpuinfo` that
users published, for each chip but the M2 Ultra, the M5 and the M5 Ultra, which get the clock of
their siblings. Sources: github.com/philipturner/applegpuinfo issues 1, 2, 4, 7, 10, 11 and 15
(where `powermetrics` and the tool's own table differ, `powermetrics` counts),
github.com/philipturner/metal-benchmarks, github.com/feedback-assistant/reports issue 830.
"""

import re
from dataclasses import dataclass

from mlx_corematching.errors import InputError


@dataclass(frozen=True)
class Chip:
    """One chip in one configuration."""

    name: str
    """As `sysctl machdep.cpu.brand_string` says it, without "Apple "; not unique."""
    gpu_cores: int
    bandwidth_gb_s: float
    """Memory bandwidth, 10^9 bytes a second."""
    gpu_tflops: float
    """FP32 peak, 10^12 operations a second."""
    tflops_stated: bool
    """True where Apple states the rate; False where it is the estimate from the clock."""
    source: str
    """URLs that state the bandwidth, the GPU cores and, if stated, the rate; space-separated."""


def _stated(name: str, cores: int, bandwidth: float, tflops: float, source: str) -> Chip:
    return Chip(name, cores, bandwidth, tflops, True, source)


def _clocked(name: str, cores: int, bandwidth: float, mhz: int, source: str) -> Chip:
    return Chip(name, cores, bandwidth, round(cores * 128 * 2 * mhz / 1e6, 2), False, source)


_NEWS = "https://www.apple.com/newsroom/"
_SPECS = "https://support.apple.com/en-us/"
_WIKI = "https://en.wikipedia.org/wiki/"

_M1 = f"{_WIKI}Apple_M1 {_NEWS}2020/11/apple-unleashes-m1/"
_M1_PRO = (
    f"{_SPECS}111902 {_NEWS}2021/10/"
    "introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
)
# The announcement's text leaves the teraflops to the slides, which this report repeats.
_M1_PRO_RATE = (
    f"{_M1_PRO} https://techzone.top/"
    "apple-m1-pro-and-m1-max-are-up-to-4-times-faster-than-the-first-m1-computer-tecnoblog/"
)
_M1_ULTRA = (
    f"{_SPECS}111900 {_NEWS}2022/03/"
    "apple-unveils-m1-ultra-the-worlds-most-powerful-chip-for-a-personal-computer/"
)
_M2 = f"{_NEWS}2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/"
_M2_PRO = (
    f"{_NEWS}2023/01/"
    "apple-unveils-m2-pro-and-m2-max-next-generation-chips-for-next-level-workflows/"
)
_M2_ULTRA = f"{_SPECS}111835 {_NEWS}2023/06/apple-introduces-m2-ultra/"
_M3 = f"{_SPECS}117735 {_WIKI}Apple_M3"
_M3_PRO = f"{_SPECS}117736 {_SPECS}117737"
_M3_ULTRA = f"{_SPECS}122211"
_M4 = f"{_SPECS}121552 {_NEWS}2024/05/apple-introduces-m4-chip/ {_WIKI}Apple_M4"
_M4_PRO = f"{_SPECS}121553 {_NEWS}2024/10/apple-introduces-m4-pro-and-m4-max/"
_M5 = (
    f"{_SPECS}126320 {_NEWS}2025/10/"
    "apple-unleashes-m5-the-next-big-leap-in-ai-performance-for-apple-silicon/"
)
_M5_PRO = (
    f"{_SPECS}126318 {_NEWS}2026/03/"
    "apple-debuts-m5-pro-and-m5-max-to-supercharge-the-most-demanding-pro-workflows/"
)
_M5_ULTRA = (
    f"{_SPECS}128107 {_NEWS}2026/08/"
    "apple-introduces-m6-and-m5-ultra-for-a-big-leap-in-performance-and-ai-compute/"
)

# A key without a number is the chip with all its cores. "-14" counts CPU cores, "-7gpu" GPU cores.
CHIPS: dict[str, Chip] = {
    "m1": _stated("M1", 8, 68.25, 2.6, _M1),
    "m1-7gpu": _clocked("M1", 7, 68.25, 1278, _M1),
    "m1-pro": _stated("M1 Pro", 16, 200, 5.2, _M1_PRO_RATE),
    "m1-pro-14gpu": _clocked("M1 Pro", 14, 200, 1296, _M1_PRO),
    "m1-max": _stated("M1 Max", 32, 400, 10.4, _M1_PRO_RATE),
    "m1-max-24gpu": _clocked("M1 Max", 24, 400, 1296, _M1_PRO),
    "m1-ultra": _clocked("M1 Ultra", 64, 800, 1296, _M1_ULTRA),
    "m1-ultra-48gpu": _clocked("M1 Ultra", 48, 800, 1296, _M1_ULTRA),
    "m2": _clocked("M2", 10, 100, 1398, _M2),
    "m2-8gpu": _clocked("M2", 8, 100, 1398, f"{_SPECS}111867 {_M2}"),
    "m2-pro": _clocked("M2 Pro", 19, 200, 1398, _M2_PRO),
    "m2-pro-16gpu": _clocked("M2 Pro", 16, 200, 1398, f"{_SPECS}111340 {_M2_PRO}"),
    "m2-max": _clocked("M2 Max", 38, 400, 1398, _M2_PRO),
    "m2-max-30gpu": _clocked("M2 Max", 30, 400, 1398, f"{_SPECS}111835 {_M2_PRO}"),
    "m2-ultra": _clocked("M2 Ultra", 76, 800, 1398, _M2_ULTRA),
    "m2-ultra-60gpu": _clocked("M2 Ultra", 60, 800, 1398, _M2_ULTRA),
    "m3": _clocked("M3", 10, 100, 1338, _M3),
    "m3-8gpu": _clocked("M3", 8, 100, 1338, _M3),
    "m3-pro": _clocked("M3 Pro", 18, 150, 1380, _M3_PRO),
    "m3-pro-14gpu": _clocked("M3 Pro", 14, 150, 1380, _M3_PRO),
    "m3-max": _clocked("M3 Max", 40, 400, 1380, _M3_PRO),
    "m3-max-14": _clocked("M3 Max", 30, 300, 1380, _M3_PRO),
    "m3-ultra": _clocked("M3 Ultra", 80, 819, 1380, _M3_ULTRA),
    "m3-ultra-60gpu": _clocked("M3 Ultra", 60, 819, 1380, _M3_ULTRA),
    "m4": _clocked("M4", 10, 120, 1578, _M4),
    "m4-8gpu": _clocked("M4", 8, 120, 1578, _M4),
    "m4-pro": _clocked("M4 Pro", 20, 273, 1578, _M4_PRO),
    "m4-pro-16gpu": _clocked("M4 Pro", 16, 273, 1578, _M4_PRO),
    "m4-max": _clocked("M4 Max", 40, 546, 1578, _M4_PRO),
    "m4-max-14": _clocked("M4 Max", 32, 410, 1578, _M4_PRO),
    # Each M5 GPU core also has a Neural Accelerator for matrix products, which the FP32 rate
    # leaves out: Apple states no rate for it, and products that use it can run faster than this.
    "m5": _clocked("M5", 10, 153, 1620, _M5),
    "m5-8gpu": _clocked("M5", 8, 153, 1620, _M5),
    "m5-pro": _clocked("M5 Pro", 20, 307, 1620, _M5_PRO),
    "m5-pro-16gpu": _clocked("M5 Pro", 16, 307, 1620, _M5_PRO),
    "m5-max": _clocked("M5 Max", 40, 614, 1620, _M5_PRO),
    "m5-max-32gpu": _clocked("M5 Max", 32, 460, 1620, _M5_PRO),
    "m5-ultra": _clocked("M5 Ultra", 80, 1200, 1620, _M5_ULTRA),
    "m5-ultra-64gpu": _clocked("M5 Ultra", 64, 1200, 1620, _M5_ULTRA),
}


def chip(name: str) -> Chip:
    """The chip of that name: "M2 Pro", "m2-pro" and "Apple M2 Pro" are the same.

    The brand string does not tell the configurations of a chip apart; without a number, as in
    "M3 Max", it is the one with all its cores.
    """
    key = re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("apple-")
    if key not in CHIPS:
        raise InputError(f"there is no chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[key]
