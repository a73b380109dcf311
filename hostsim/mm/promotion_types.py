"""What a promotion policy answers at the first fault of a window."""

from typing import Final

FIRST_HUGE: Final = 0  # map a huge page
FIRST_SMALL: Final = 1  # map one small page; khugepaged may make the window huge later
FIRST_RESERVE: Final = 2  # set a huge page aside and map one page of it
