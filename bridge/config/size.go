package config

import (
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. YAML gives it as an integer, with or without a unit: 1000000, 1MB, 64MiB.
type Size int64

type sizeUnit struct {
	name  string
	bytes Size
}

// sizeUnits lists the large units first, and B last, because every other name ends in it.
func sizeUnits() []sizeUnit {
	return []sizeUnit{{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}, {"B", 1}}
}

// String returns the size in the largest unit that divides it.
func (s Size) String() string {
	for _, unit := range sizeUnits() {
		if s != 0 && s%unit.bytes == 0 {
			return strconv.FormatInt(int64(s/unit.bytes), 10) + unit.name
		}
	}
	return "0B"
}

func parseSize(text string) (Size, bool) {
	factor := Size(1)
	for _, unit := range sizeUnits() {
		if number, ok := strings.CutSuffix(text, unit.name); ok {
			text, factor = number, unit.bytes
			break
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || Size(n) > math.MaxInt64/factor {
		return 0, false
	}
	return Size(n) * factor, true
}
