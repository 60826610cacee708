// Gradients in other metrics, along one axis of an array (outer, n, inner): a line is what two of the indices leave.
//
// A block has LINES lines, side by side in memory where `inner` is as large, and cuts each into PARTS parts, one for a
// thread. A thread sums up its part as if nothing came before it; what comes before it follows from the sums of the
// parts, and with that it goes through its part again. Sums are kept in float64.
//
// REAL is the type of the entries, LINES and PARTS are the threads of a block.

typedef long long Index;

struct Part {
    Index line, start, step;  // of the line, and where its first entry stands
    Index from, to;           // the entries of the part
    bool taken;
};

__device__ Part part_of(Index first, Index lines, Index n, Index inner, int part) {
    const Index line = (Index)blockIdx.x * LINES + threadIdx.x, each = (n + PARTS - 1) / PARTS;
    const Index at = first + line;
    Part found = {line, at / inner * n * inner + at % inner, inner, part * each, (part + 1) * each, line < lines};
    found.from = found.from < n ? found.from : n;
    found.to = found.to < n ? found.to : n;
    if (!found.taken) found.from = found.to = 0;
    return found;
}

// Give all parts of a line to each other; the parts before this one are added in one order.
__device__ double sum_before(double value, double (*shared)[LINES], int parts) {
    __syncthreads();
    shared[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    double sum = 0.0;
    for (int s = 0; s < parts; s++) sum += shared[s][threadIdx.x];
    return sum;
}

__device__ double mean_of(const REAL *f, const Part &part, Index n, double (*shared)[LINES]) {
    double sum = 0.0;
    for (Index j = part.from; j < part.to; j++) sum += (double)f[part.start + j * part.step];
    return sum_before(sum, shared, PARTS) / (double)n;
}

// g = mean + (f - mean) / lam.
extern "C" __global__ void reweighted_gradient(
    const REAL *f, REAL *g, Index lines, Index n, Index inner, double lam
) {
    __shared__ double shared[PARTS][LINES];
    const Part part = part_of(0, lines, n, inner, threadIdx.y);
    const double mean = mean_of(f, part, n, shared);
    for (Index j = part.from; j < part.to; j++) {
        const Index at = part.start + j * part.step;
        g[at] = (REAL)(mean + ((double)f[at] - mean) / lam);
    }
}

// g = mean + (values - mean of values) / (lam n^2) + blend f, with bends the sums of f - mean up to and with each entry,
// and values the sums of (mean of bends - bends) before each entry.
extern "C" __global__ void sobolev_gradient(
    const REAL *f, REAL *g, Index lines, Index n, Index inner, double lam, double blend
) {
    __shared__ double shared[PARTS][LINES];
    const Part part = part_of(0, lines, n, inner, threadIdx.y);
    const double mean = mean_of(f, part, n, shared);

    double bend = 0.0, sum = 0.0;
    for (Index j = part.from; j < part.to; j++) {
        bend += (double)f[part.start + j * part.step] - mean;
        sum += bend;
    }
    const double first_bend = sum_before(bend, shared, threadIdx.y);
    const double mean_bend = sum_before(sum + first_bend * (double)(part.to - part.from), shared, PARTS) / (double)n;

    double value = 0.0;
    bend = first_bend, sum = 0.0;
    for (Index j = part.from; j < part.to; j++) {
        bend += (double)f[part.start + j * part.step] - mean;
        sum += value;
        value += mean_bend - bend;
    }
    const double first_value = sum_before(value, shared, threadIdx.y);
    const double mean_value = sum_before(sum + first_value * (double)(part.to - part.from), shared, PARTS) / (double)n;

    const double weight = lam * (double)n * (double)n;
    bend = first_bend, value = first_value;
    for (Index j = part.from; j < part.to; j++) {
        const Index at = part.start + j * part.step;
        const double entry = (double)f[at];
        bend += entry - mean;
        g[at] = (REAL)(mean + (value - mean_value) / weight + blend * entry);
        value += mean_bend - bend;
    }
}

// Return the state before a part of the recursion state <- entry + decay state, which ends as it begins: `last` is the
// state that this part would end with after zeros, `place` the part's number in the order of the recursion. Over a whole
// part a state decays to `whole` of it, over the one part that may be shorter to `rest`.
__device__ double state_before(
    double last, double (*shared)[LINES], int place, Index n, double whole, double rest, double period, bool backward
) {
    const Index each = (n + PARTS - 1) / PARTS;
    __syncthreads();
    shared[threadIdx.y][threadIdx.x] = last;
    __syncthreads();
    double state = 0.0;
    for (int round = 0; round < 2; round++) {
        for (int s = 0; s < PARTS; s++) {
            if (round == 1 && s == place) return state;
            const int part = backward ? PARTS - 1 - s : s;
            const Index length = n - part * each;
            if (length <= 0) continue;
            state = shared[part][threadIdx.x] + (length < each ? rest : whole) * state;
        }
        state /= period;
    }
    return state;
}

// (I - sigma L) g = f by a forward and a backward recursion, both periodic: decay = a, scale = (1 - a)^2, period = 1 - a^n,
// whole and rest are the powers of a that `state_before` takes. Lines from `first` on; `forward` (n, lines) is room for
// what is between the two.
extern "C" __global__ void laplacian_smoothing(
    const REAL *f, REAL *g, double *forward, Index first, Index lines, Index n, Index inner, double decay, double scale,
    double whole, double rest, double period
) {
    __shared__ double shared[PARTS][LINES];
    const Part part = part_of(first, lines, n, inner, threadIdx.y);
    double state = 0.0;
    for (Index j = part.from; j < part.to; j++) state = (double)f[part.start + j * part.step] + decay * state;
    state = state_before(state, shared, threadIdx.y, n, whole, rest, period, false);
    for (Index j = part.from; j < part.to; j++) {
        state = (double)f[part.start + j * part.step] + decay * state;
        forward[j * lines + part.line] = state;
    }
    state = 0.0;
    for (Index j = part.to; j-- > part.from;) state = forward[j * lines + part.line] + decay * state;
    state = state_before(state, shared, PARTS - 1 - (int)threadIdx.y, n, whole, rest, period, true);
    for (Index j = part.to; j-- > part.from;) {
        state = forward[j * lines + part.line] + decay * state;
        g[part.start + j * part.step] = (REAL)(state * scale);
    }
}
