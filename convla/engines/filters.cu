// The two maps of convolutional similarity: a block for each filter, of any number of layers stacked.
//
// The channels of a filter are copied to shared memory, as many at a time as fit, and widened: sums and products are
// those of SUM, float64 for either floating-point type. Where taps and lags stand is told by tables of flat indices.
//
// REAL is the type of the entries, SUM of sums, THREADS the threads of a block, TILE the entries that are copied at a
// time, of at least one channel, LAGS the most lags.

typedef long long Index;

// Copy whole channels, from `start` on; return how many.
__device__ Index load(const REAL *filter, SUM *tile, Index start, Index channels, Index taps) {
    const Index most = TILE / taps, count = channels - start < most ? channels - start : most;
    for (Index i = threadIdx.x; i < count * taps; i += THREADS) tile[i] = filter[start * taps + i];
    return count;
}

// lags[i, middle + h] = lags[i, middle - h] = sum over channels c and pairs of taps (p, q) at lag h of
// kernels[i, c, p] kernels[i, c, q].
//
// The table has first (middle + 2) and then, from first[h] to first[h + 1], the pairs (p, q) at lag h, h = 0 .. middle.
extern "C" __global__ void summed_autocorrelations(
    const REAL *kernels, const int *table, SUM *lags, Index channels, Index taps, Index middle
) {
    __shared__ SUM tile[TILE];
    __shared__ SUM sums[THREADS];
    const int *pairs = table + middle + 2, total = table[middle + 1];
    const REAL *filter = kernels + blockIdx.x * channels * taps;
    SUM *row = lags + blockIdx.x * (2 * middle + 1) + middle;
    // As many threads for each pair as there are, each with some of the channels.
    const int shares = total < THREADS ? THREADS / total : 1, width = THREADS / shares;
    const int place = threadIdx.x / shares, share = threadIdx.x % shares;
    for (Index h = threadIdx.x; h <= middle; h += THREADS) row[h] = 0;
    for (int base = 0; base < total; base += width) {
        const int pair = base + place;
        const bool taken = place < width && pair < total;
        const int p = taken ? pairs[2 * pair] : 0, q = taken ? pairs[2 * pair + 1] : 0;
        SUM sum = 0;
        for (Index start = 0, count; start < channels; start += count) {
            __syncthreads();
            count = load(filter, tile, start, channels, taps);
            __syncthreads();
            if (taken)
                for (Index c = share; c < count; c += shares) sum += tile[c * taps + p] * tile[c * taps + q];
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        for (Index h = threadIdx.x; h <= middle; h += THREADS) {
            const int from = table[h] > base ? table[h] : base;
            const int to = table[h + 1] < base + width ? table[h + 1] : base + width;
            SUM at = row[h];
            for (int i = (from - base) * shares; i < (to - base) * shares; i++) at += sums[i];
            row[h] = at;
        }
    }
    for (Index h = threadIdx.x; h <= middle; h += THREADS) row[-h] = row[h];
}

// out[i, c, q] = sum over taps p of lags[i, middle + offsets[p] - offsets[q]] kernels[i, c, p].
extern "C" __global__ void correlate_lags(
    const REAL *kernels, const SUM *lags, const int *offsets, REAL *out, Index channels, Index taps, Index middle
) {
    __shared__ SUM tile[TILE];
    __shared__ SUM row[LAGS];
    const REAL *filter = kernels + blockIdx.x * channels * taps;
    REAL *result = out + blockIdx.x * channels * taps;
    for (Index t = threadIdx.x; t <= 2 * middle; t += THREADS) row[t] = lags[blockIdx.x * (2 * middle + 1) + t];
    for (Index start = 0, count; start < channels; start += count) {
        __syncthreads();
        count = load(filter, tile, start, channels, taps);
        __syncthreads();
        for (Index i = threadIdx.x; i < count * taps; i += THREADS) {
            const Index q = i % taps, zero = middle - offsets[q];
            const SUM *channel = tile + i - q;
            SUM sum = 0;
            for (Index p = 0; p < taps; p++) sum += row[zero + offsets[p]] * channel[p];
            result[start * taps + i] = (REAL)sum;
        }
    }
}
