// What the maps of a convolution read, for one to three axes, any boundary, stride, dilation and groups.
//
// It stands in a table (`convla.engines._cuda_maps`): along each axis, the output at place i of a phase reads through a
// tap the entry `sources[i * step + shift]` of what is given, or a zero, where that is -1. So cross-correlation and its
// image adjoint are one kernel, and no boundary or stride has code of its own. An axis that an image does not have is
// one of length 1. The places of all images form one axis, so that small images fill blocks too.
//
// REAL is the type of the entries, COUNT that of a table and of what counts the places of all images.

typedef long long Index;
typedef COUNT Count;

constexpr int VECTOR = 16 / sizeof(REAL);
struct alignas(16) Vector {
    REAL at[VECTOR];
};

// The head of the table of a map.
struct Map {
    Count groups, outs, ins;  // the channels of a group, of the result and of what is given
    Count taps[3], dilations[3];
    Count counts[3];  // the places of a phase
    Count results[3], given[3];  // sizes
    Count phases[3], steps[3];
    Count sources[3], slots[3];  // where they stand in the table; the slots of a phase: how many, and pairs (tap, shift)
};

__device__ Count product(const Count *sizes) { return sizes[0] * sizes[1] * sizes[2]; }

__device__ Count smaller(Count a, Count b) { return a < b ? a : b; }

// One place of a phase, in all images.
struct Place {
    Count image, index[3];
};

__device__ Place place_of(const Map &map, Count n) {
    const Count *counts = map.counts;
    const Count rows = n / counts[2], planes = rows / counts[1], image = planes / counts[0];
    return {image, {planes - image * counts[0], rows - planes * counts[1], n - rows * counts[2]}};
}

struct Phase {
    Count at[3];
};

__device__ Phase phase_of(const Map &map, Count phase) {
    const Count rest = phase / map.phases[2];
    return {{rest / map.phases[1], rest % map.phases[1], phase % map.phases[2]}};
}

// Return where a place stands in a channel of the result, or -1 where the phase ends before it.
__device__ Count result_of(const Map &map, const Phase &phase, const Place &place) {
    Count index = 0;
    for (int a = 0; a < 3; a++) {
        const Count at = phase.at[a] + place.index[a] * map.phases[a];
        if (at >= map.results[a]) return -1;
        index = index * map.results[a] + at;
    }
    return index;
}

__device__ const Count *slots_of(const Map &map, const Count *table, const Phase &phase, int axis) {
    return table + map.slots[axis] + phase.at[axis] * (1 + 2 * map.taps[axis]);
}

// Where a place of a phase stands in the result: its image, and in a channel of it, or -1 where the phase ends before.
struct Spot {
    Count image, index;
};

__device__ Spot spot_of(const Map &map, Count phase, Count n) {
    if (product(map.phases) == 1) {
        const Count places = product(map.counts), image = n / places;
        return {image, n - image * places};
    }
    const Place place = place_of(map, n);
    return {place.image, result_of(map, phase_of(map, phase), place)};
}
