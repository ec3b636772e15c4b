// The CPU kernels of training: attention with small heads, the softmax's exponentials, GELU,
// k-winners-take-all, and products with the few winners.
//
// Fused attention libraries are made for heads of 64 and more; at the paper's 8 they spend their
// time on bookkeeping. Here one (batch, head) pair is a work item: its keys and values are laid out
// with positions along the vector lanes and stay in the first-level cache, a query row is one sweep
// over them, and no pattern is ever stored. Each item is computed by one thread, in one order, so
// the number of threads changes no bit.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef __AVX512F__
constexpr int W = 16;  // lanes of a vector
#else
constexpr int W = 8;
#endif
typedef float Vec __attribute__((vector_size(W * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(W * sizeof(int32_t))));

static inline Vec load(const float* at) {
  Vec value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
static inline void store(float* at, Vec value) { std::memcpy(at, &value, sizeof value); }
static inline Vec all(float value) { return Vec{} + value; }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline float sum(Vec value) {
  float total = 0;
  for (int lane = 0; lane < W; lane++) total += value[lane];
  return total;
}
static inline float maximum(Vec value) {
  float largest = value[0];
  for (int lane = 1; lane < W; lane++) largest = std::max(largest, value[lane]);
  return largest;
}
static inline Vec lanes() {
  Vec value;
  for (int lane = 0; lane < W; lane++) value[lane] = lane;
  return value;
}

// e^x for x <= 0 to about one unit in the last place; below -87 the smallest normal number.
static inline Vec exponential(Vec x) {
  x = x < -87.0f ? all(-87.0f) : x;  // written so that NaN stays NaN
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec shifted = x * 1.44269504088896341f + magic;
  Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;  // ln 2 in two parts
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec power;
  std::memcpy(&power, &shifted, sizeof power);
  power = (power << 23) + 0x3f800000;  // 2^n; the shift drops all but n
  Vec scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

// Row r of `own` attends to itself at its own position and to row r % batch of `read` at earlier
// ones; `own` holds `streams` * batch rows and may be `read` itself. Both are (rows, pos, 3, heads,
// D): queries, keys, values.
struct Shape {
  int64_t streams, batch, pos, heads;
  float scale;
  int threads;
  int64_t rows() const { return streams * batch; }
  int64_t padded() const { return (pos + W - 1) / W * W; }
};

constexpr int TILE = W;  // query rows taken together: each key that is loaded serves all of them

template <int D>
struct HeadVector {
  typedef float Type __attribute__((vector_size(D * sizeof(float))));
};
template <int D>
using Head = typename HeadVector<D>::Type;

// Where one head of one row lies.
template <int D>
struct Place {
  const Shape& shape;
  int64_t row, head;
  template <typename Float>
  Float* projection(Float* base, int which, int64_t i) const {
    return base + (((row * shape.pos + i) * 3 + which) * shape.heads + head) * D;
  }
  template <typename Float>
  Float* z(Float* base, int64_t i) const {
    return base + ((row * shape.pos + i) * shape.heads + head) * D;
  }
  template <typename Float>
  Float* lse(Float* base, int64_t i) const {
    return base + (row * shape.heads + head) * shape.pos + i;
  }
};

// Keys or values of a place, side by side and once more with positions along the lanes.
template <int D>
struct Past {
  std::vector<Head<D>> by_position;
  std::vector<Vec> by_lane;  // [D][padded / W]
  int64_t blocks;
  explicit Past(int64_t padded) : by_position(padded), by_lane(D * padded / W), blocks(padded / W) {}
  void fill(const Place<D>& place, const float* base, int which) {
    for (int64_t j = 0; j < place.shape.pos; j++) {
      const float* from = place.projection(base, which, j);
      std::memcpy(&by_position[j], from, sizeof(Head<D>));
      for (int d = 0; d < D; d++) by_lane[d * blocks + j / W][j % W] = from[d];
    }
  }
  // Dot products of a tile's vectors with the W positions of a block.
  void dot(const float (*vectors)[D], int64_t block, Vec* out) const {
    Vec sums[TILE] = {};
    for (int d = 0; d < D; d++) {
      const Vec column = by_lane[d * blocks + block];
      for (int r = 0; r < TILE; r++) sums[r] += vectors[r][d] * column;
    }
    for (int r = 0; r < TILE; r++) out[r] = sums[r];
  }
};

// Within the tile's own block, row r sees the r positions before it.
static inline Vec earlier(int r, Vec value, float otherwise) {
  return lanes() < float(r) ? value : all(otherwise);
}

template <int D>
static void forward(const float* own, const float* read, float* z, float* lse,
                    const Shape& shape) {
  const int64_t padded = shape.padded();
#pragma omp parallel num_threads(shape.threads)
  {
    Past<D> keys(padded), values(padded);
    std::vector<Vec> pattern(TILE * padded / W);
    float* const weights = reinterpret_cast<float*>(pattern.data());
#pragma omp for schedule(static)
    for (int64_t index = 0; index < shape.batch * shape.heads; index++) {
      const Place<D> past{shape, index / shape.heads, index % shape.heads};
      keys.fill(past, read, 1);
      values.fill(past, read, 2);
      for (int64_t row = past.row; row < shape.rows(); row += shape.batch) {
        const Place<D> self{shape, row, past.head};
        for (int64_t start = 0; start < shape.pos; start += TILE) {
          const int64_t last = start / W;
          const int count = std::min<int64_t>(TILE, shape.pos - start);
          float queries[TILE][D] = {}, own_scores[TILE] = {}, masses[TILE] = {};
          for (int r = 0; r < count; r++)
            for (int d = 0; d < D; d++) {
              queries[r][d] = self.projection(own, 0, start + r)[d] * shape.scale;
              own_scores[r] += queries[r][d] * self.projection(own, 1, start + r)[d];
            }
          for (int64_t block = 0; block <= last; block++) {
            Vec scores[TILE];
            keys.dot(queries, block, scores);
            for (int r = 0; r < TILE; r++)
              pattern[r * (padded / W) + block] =
                  block == last ? earlier(r, scores[r], -INFINITY) : scores[r];
          }
          for (int r = 0; r < count; r++) {
            Vec* const scores = &pattern[r * (padded / W)];
            Vec largest = all(own_scores[r]), total{};
            for (int64_t block = 0; block <= last; block++) largest = larger(largest, scores[block]);
            const float top = maximum(largest);
            for (int64_t block = 0; block < last; block++)
              total += scores[block] = exponential(scores[block] - top);
            total += scores[last] = earlier(r, exponential(scores[last] - top), 0);
            own_scores[r] = exponential(all(own_scores[r] - top))[0];  // the weight from here on
            masses[r] = sum(total) + own_scores[r];
            *self.lse(lse, start + r) = top + std::log(masses[r]);
          }
          Head<D> sums[TILE] = {};
          for (int64_t j = 0; j < start + count; j++)
            for (int r = 0; r < TILE; r++) sums[r] += weights[r * padded + j] * values.by_position[j];
          for (int r = 0; r < count; r++)
            for (int d = 0; d < D; d++)
              self.z(z, start + r)[d] =
                  (sums[r][d] + own_scores[r] * self.projection(own, 2, start + r)[d]) / masses[r];
        }
      }
    }
  }
}

// Adds to grad_own (all of it) and to grad_read (keys and values); the two may be the same.
template <int D>
static void backward(const float* own, const float* read, const float* z, const float* lse,
                     const float* grad_z, float* grad_own, float* grad_read, const Shape& shape) {
  const int64_t padded = shape.padded();
#pragma omp parallel num_threads(shape.threads)
  {
    Past<D> keys(padded), values(padded);
    std::vector<Head<D>> grad_keys(padded), grad_values(padded);
    std::vector<Vec> pattern(TILE * padded / W), grad_pattern(TILE * padded / W);
    float* const weights = reinterpret_cast<float*>(pattern.data());
    float* const grad_scores = reinterpret_cast<float*>(grad_pattern.data());
#pragma omp for schedule(static)
    for (int64_t index = 0; index < shape.batch * shape.heads; index++) {
      const Place<D> past{shape, index / shape.heads, index % shape.heads};
      keys.fill(past, read, 1);
      values.fill(past, read, 2);
      std::fill(grad_keys.begin(), grad_keys.end(), Head<D>{});
      std::fill(grad_values.begin(), grad_values.end(), Head<D>{});
      for (int64_t row = past.row; row < shape.rows(); row += shape.batch) {
        const Place<D> self{shape, row, past.head};
        for (int64_t start = 0; start < shape.pos; start += TILE) {
          const int64_t last = start / W;
          const int count = std::min<int64_t>(TILE, shape.pos - start);
          float queries[TILE][D] = {}, pulls[TILE][D] = {}, own_scores[TILE] = {};
          float deltas[TILE] = {}, own_pulls[TILE] = {}, lses[TILE] = {};
          for (int r = 0; r < count; r++) {
            lses[r] = *self.lse(lse, start + r);
            for (int d = 0; d < D; d++) {
              queries[r][d] = self.projection(own, 0, start + r)[d] * shape.scale;
              pulls[r][d] = self.z(grad_z, start + r)[d];
              own_scores[r] += queries[r][d] * self.projection(own, 1, start + r)[d];
              own_pulls[r] += pulls[r][d] * self.projection(own, 2, start + r)[d];
              deltas[r] += pulls[r][d] * self.z(z, start + r)[d];
            }
          }
          for (int64_t block = 0; block <= last; block++) {
            Vec scores[TILE], pulled[TILE];
            keys.dot(queries, block, scores);
            values.dot(pulls, block, pulled);
            for (int r = 0; r < TILE; r++) {
              Vec weight = exponential(scores[r] - lses[r]);
              if (block == last) weight = r < count ? earlier(r, weight, 0) : Vec{};
              else if (r >= count) weight = Vec{};
              pattern[r * (padded / W) + block] = weight;
              grad_pattern[r * (padded / W) + block] = weight * (pulled[r] - deltas[r]);
            }
          }
          Head<D> sums[TILE] = {}, tile_queries[TILE], tile_pulls[TILE];
          std::memcpy(tile_queries, queries, sizeof queries);
          std::memcpy(tile_pulls, pulls, sizeof pulls);
          for (int64_t j = 0; j < start + count; j++)
            for (int r = 0; r < TILE; r++) sums[r] += grad_scores[r * padded + j] * keys.by_position[j];
          for (int64_t j = 0; j < start + count; j++) {
            Head<D> to_key = grad_keys[j], to_value = grad_values[j];
            for (int r = 0; r < TILE; r++) {
              to_key += grad_scores[r * padded + j] * tile_queries[r];
              to_value += weights[r * padded + j] * tile_pulls[r];
            }
            grad_keys[j] = to_key;
            grad_values[j] = to_value;
          }
          for (int r = 0; r < count; r++) {
            const float own_weight = exponential(all(own_scores[r] - lses[r]))[0];
            const float grad_own_score = own_weight * (own_pulls[r] - deltas[r]);
            float *to_query = self.projection(grad_own, 0, start + r),
                  *to_key = self.projection(grad_own, 1, start + r),
                  *to_value = self.projection(grad_own, 2, start + r);
            const float* own_key = self.projection(own, 1, start + r);
            for (int d = 0; d < D; d++) {
              to_query[d] += (sums[r][d] + grad_own_score * own_key[d]) * shape.scale;
              to_key[d] += grad_own_score * queries[r][d];
              to_value[d] += own_weight * pulls[r][d];
            }
          }
        }
      }
      for (int64_t j = 0; j < shape.pos; j++) {
        float *to_key = past.projection(grad_read, 1, j), *to_value = past.projection(grad_read, 2, j);
        for (int d = 0; d < D; d++) {
          to_key[d] += grad_keys[j][d];
          to_value[d] += grad_values[j][d];
        }
      }
    }
  }
}

// Logits become e^(x - largest of the row); largest and totals: that, and the sum of the row.
static void exponentials_rows(float* logits, float* tops, float* totals, int64_t rows,
                              int64_t width, int threads) {
  const int64_t whole = width / W * W;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    float* x = logits + row * width;
    Vec largest = all(-INFINITY);
    for (int64_t j = 0; j < whole; j += W) largest = larger(largest, load(x + j));
    float top = maximum(largest);
    for (int64_t j = whole; j < width; j++) top = std::max(top, x[j]);
    top = std::max(top, -FLT_MAX);  // nothing but -inf: what is left is -inf, not NaN
    double total = 0;
    for (int64_t start = 0; start < whole; start += 1024 * W) {  // partial sums keep their digits
      Vec part{};
      for (int64_t j = start; j < std::min(whole, start + 1024 * W); j += W) {
        Vec e = exponential(load(x + j) - top);
        store(x + j, e);
        part += e;
      }
      total += sum(part);
    }
    for (int64_t j = whole; j < width; j++) total += x[j] = exponential(all(x[j] - top))[0];
    tops[row] = top;
    totals[row] = float(total);
  }
}

// gelu_new(x) = x * sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3); and its derivative.
constexpr float GELU_LINEAR = 1.5957691216057308f, GELU_CUBIC = 0.044715f;  // 2 sqrt(2 / pi)

static inline Vec gelu_sigmoid(Vec x) {
  Vec twice = GELU_LINEAR * x * (1.0f + GELU_CUBIC * x * x);
  Vec e = exponential(twice > 0.0f ? -twice : twice);
  return (twice > 0.0f ? all(1.0f) : e) / (1.0f + e);
}
static inline Vec gelu(Vec x) { return x * gelu_sigmoid(x); }
static inline Vec gelu_slope(Vec x, Vec share) {
  return share + x * share * (1.0f - share) * GELU_LINEAR * (1.0f + 3.0f * GELU_CUBIC * x * x);
}

// out[i] = function(in[i]), whole vectors and the rest alike.
template <typename Function>
static void each(int64_t n, int threads, Function function) {
  const int64_t whole = n / W;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < whole; block++) function(block * W, W);
  if (n % W) function(whole * W, int(n % W));
}

static inline Vec load_some(const float* at, int count) {
  if (count == W) return load(at);
  Vec value{};
  std::memcpy(&value, at, count * sizeof(float));
  return value;
}
static inline void store_some(float* at, Vec value, int count) {
  std::memcpy(at, &value, count * sizeof(float));
}

// k-winners-take-all, and the gradient of softmax((x - top) / T), T = max(temperature * (x_k -
// x_{k+1}), floor): see sat_interp.gates, where the same is written in PyTorch.

// What the backward pass needs to know of a row of scores.
struct Rank {
  float top, kth, next, sharpness;  // sharpness: T
};

constexpr float FAINT = -60.0f;  // e^-60 of the largest weight counts as nothing: no denormals

static inline Vec weight_of(Vec x, const Rank& rank, float over_sharpness) {
  const Vec u = (x - rank.top) * over_sharpness;
  return u < FAINT ? Vec{} : exponential(u);
}

// A row, padded to whole vectors.
struct Row {
  std::vector<Vec> padded;
  int64_t units;
  explicit Row(int64_t units) : padded((units + W - 1) / W), units(units) {}
  float* data() { return reinterpret_cast<float*>(padded.data()); }
  void fill(const float* from, float padding) {
    padded.back() = all(padding);
    std::memcpy(data(), from, units * sizeof(float));
  }
};

static int64_t count_from(const std::vector<Vec>& row, float threshold) {
  IntVec counts{};
  for (const Vec& x : row) counts -= x >= threshold;
  int64_t total = 0;
  for (int lane = 0; lane < W; lane++) total += counts[lane];
  return total;
}

// The k-th and (k+1)-th largest of a row (padded with -inf), and its mask of k ones; of winners
// that tie, the first. A threshold that exactly k scores reach is found by bisection, in a handful
// of sweeps; where scores tie, or nearly, there is none, and they are put in order instead.
static void select(Row& row, int64_t k, float smallest, Rank& rank, float* mask,
                   std::vector<float>& ordered) {
  float low = smallest, high = rank.top;
  int64_t reached = 0;
  for (int sweep = 0; sweep < 24 && reached != k; sweep++) {
    const float middle = low + (high - low) / 2;
    reached = count_from(row.padded, middle);
    (reached < k ? high : low) = middle;
  }
  const float* x = row.data();
  if (reached == k) {  // by low
    Vec kth = all(rank.top), next = all(smallest);
    for (const Vec& x : row.padded) {
      kth = x >= low && x < kth ? x : kth;
      next = x < low ? larger(x, next) : next;
    }
    rank.kth = -maximum(-kth);
    rank.next = maximum(next);
    for (int64_t i = 0; i < row.units; i++) mask[i] = x[i] >= low;
    return;
  }
  ordered.assign(x, x + row.units);
  std::nth_element(ordered.begin(), ordered.begin() + k, ordered.end(), std::greater<float>());
  rank.next = ordered[k];
  rank.kth = *std::min_element(ordered.begin(), ordered.begin() + k);
  int64_t tied = k - count_from(row.padded, std::nextafter(rank.kth, INFINITY));
  for (int64_t i = 0; i < row.units; i++)
    mask[i] = x[i] > rank.kth || (x[i] == rank.kth && tied-- > 0);
}

// A row's soft weights, in place of its scores.
static void soften(Row& row, const Rank& rank, float* weights) {
  const float over = 1 / rank.sharpness;
  Vec total{};
  for (Vec& x : row.padded) total += x = weight_of(x, rank, over);
  const float share = 1 / sum(total);
  for (Vec& x : row.padded) x *= share;
  std::memcpy(weights, row.data(), row.units * sizeof(float));
}

// mask: hard, or the soft weights; all NaN where a score is no finite number.
static void k_winners_rows(const float* scores, float* mask, Rank* ranks, int64_t rows,
                           int64_t units, int64_t stride, int64_t k, bool soft, float temperature,
                           float least, float least_spread, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Row row(units);
    std::vector<float> ordered;
#pragma omp for schedule(static)
    for (int64_t index = 0; index < rows; index++) {
      const float* x = scores + index * stride;
      float* out = mask + index * units;
      row.fill(x, x[0]);
      Vec largest = row.padded[0], smallest = largest, finite{};
      for (const Vec& x : row.padded) {
        largest = larger(x, largest);
        smallest = x < smallest ? x : smallest;
        finite += x - x;
      }
      Rank& rank = ranks[index];
      if (std::isnan(sum(finite))) {
        rank = {NAN, NAN, NAN, NAN};
        std::fill(out, out + units, NAN);
        continue;
      }
      row.fill(x, -INFINITY);
      const float bottom = -maximum(-smallest);
      rank.top = maximum(largest);
      select(row, k, bottom, rank, out, ordered);
      rank.sharpness = std::max(temperature * (rank.kth - rank.next),
                                least * std::max(rank.top - bottom, least_spread));
      if (soft) soften(row, rank, out);
    }
  }
}

// Units that tie for the k-th place, or for the next, share the gradient that comes through T. Where
// the floor holds T, there is no gradient, or with `detached_floor` that of a constant T.
static void k_winners_gradient(const float* scores, const Rank* ranks, const float* grad_weights,
                               float* grad_scores, int64_t rows, int64_t units, int64_t stride,
                               bool detached_floor, float temperature, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Row row(units), pull(units), weights(units);
    const int64_t blocks = row.padded.size();
#pragma omp for schedule(static)
    for (int64_t index = 0; index < rows; index++) {
      const Rank& rank = ranks[index];
      const bool is_held = rank.sharpness > temperature * (rank.kth - rank.next);
      if (is_held && !detached_floor) {
        std::fill(grad_scores + index * units, grad_scores + (index + 1) * units, 0.0f);
        continue;
      }
      const float over = 1 / rank.sharpness;
      row.fill(scores + index * stride, -INFINITY);
      pull.fill(grad_weights + index * units, 0);
      Vec total{}, pulled{};
      for (int64_t block = 0; block < blocks; block++) {
        const Vec weight = weight_of(row.padded[block], rank, over);
        weights.padded[block] = weight;
        total += weight;
        pulled += weight * pull.padded[block];
      }
      const float mass = sum(total), mean = sum(pulled) / mass, factor = over / mass;
      Vec stretch{};  // - dL/dT
      for (int64_t block = 0; block < blocks; block++) {
        const Vec grad = weights.padded[block] * (pull.padded[block] - mean) * factor;
        const Vec x = row.padded[block];
        stretch += weights.padded[block] > 0.0f ? grad * (x - rank.top) : Vec{};
        weights.padded[block] = grad;
      }
      if (!is_held) {
        const float through = temperature * over * sum(stretch);
        IntVec at_kth{}, at_next{};
        for (const Vec& x : row.padded) at_kth -= x == rank.kth, at_next -= x == rank.next;
        int64_t sharing_kth = 0, sharing_next = 0;
        for (int lane = 0; lane < W; lane++)
          sharing_kth += at_kth[lane], sharing_next += at_next[lane];
        const Vec to_kth = all(-through / sharing_kth), to_next = all(through / sharing_next);
        for (int64_t block = 0; block < blocks; block++) {
          const Vec x = row.padded[block];
          weights.padded[block] += x == rank.kth ? to_kth : x == rank.next ? to_next : Vec{};
        }
      }
      std::memcpy(grad_scores + index * units, weights.data(), units * sizeof(float));
    }
  }
}

// Products with the few units of a row whose mask is not 0; see sat_interp.fast.

// Calls winner(i) for each unit i with mask[i] != 0, in order.
template <typename Winner>
static void each_winner(const float* mask, int64_t units, Winner winner) {
  constexpr int64_t STEP = 16;
  for (int64_t start = 0; start < units; start += STEP) {
    const int64_t stop = std::min(units, start + STEP);
    if (stop - start == STEP) {
      uint64_t words[STEP / 2], any = 0;
      std::memcpy(words, mask + start, sizeof words);
      for (uint64_t word : words) any |= word;
      if (!any) continue;
    }
    for (int64_t i = start; i < stop; i++)
      if (mask[i] != 0) winner(i);
  }
}

static inline float activated(float x, bool is_gelu) { return is_gelu ? gelu(all(x))[0] : x; }

// out = (mask * x) @ weight, or (mask * gelu(x)) @ weight; weight: (units, width).
static void winners_product_rows(const float* x, const float* mask, const float* weight, float* out,
                                 int64_t rows, int64_t units, int64_t width, bool is_gelu,
                                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    float* __restrict to = out + row * width;
    std::fill(to, to + width, 0.0f);
    each_winner(mask + row * units, units, [&](int64_t i) {
      const float factor = mask[row * units + i] * activated(x[row * units + i], is_gelu);
      const float* __restrict from = weight + i * width;
      for (int64_t j = 0; j < width; j++) to[j] += factor * from[j];
    });
  }
}

// out = (mask * x).T @ y, or (mask * gelu(x)).T @ y; y: (rows, width), out: (units, width), zeros.
// A thread has some of the columns to itself and takes the rows in order.
static void winners_outer_columns(const float* x, const float* mask, const float* y, float* out,
                                  int64_t rows, int64_t units, int64_t width, bool is_gelu,
                                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; part++) {
    const int64_t first = width * part / threads, last = width * (part + 1) / threads;
    for (int64_t row = 0; row < rows; row++)
      each_winner(mask + row * units, units, [&](int64_t i) {
        const float factor = mask[row * units + i] * activated(x[row * units + i], is_gelu);
        const float* __restrict from = y + row * width;
        float* __restrict to = out + i * width;
        for (int64_t j = first; j < last; j++) to[j] += factor * from[j];
      });
  }
}

#define FOR_EACH_D_HEAD(call) \
  switch (d_head) {           \
    case 4: call(4); break;   \
    case 8: call(8); break;   \
    case 16: call(16); break; \
    case 32: call(32); break; \
    default: return 1;        \
  }                           \
  return 0;

extern "C" int attention_forward(const float* own, const float* read, float* z, float* lse,
                                 int64_t streams, int64_t batch, int64_t pos, int64_t heads,
                                 int64_t d_head, float scale, int threads) {
  const Shape shape{streams, batch, pos, heads, scale, threads};
#define CALL(D) forward<D>(own, read, z, lse, shape)
  FOR_EACH_D_HEAD(CALL)
#undef CALL
}

extern "C" int attention_backward(const float* own, const float* read, const float* z,
                                  const float* lse, const float* grad_z, float* grad_own,
                                  float* grad_read, int64_t streams, int64_t batch, int64_t pos,
                                  int64_t heads, int64_t d_head, float scale, int threads) {
  const Shape shape{streams, batch, pos, heads, scale, threads};
#define CALL(D) backward<D>(own, read, z, lse, grad_z, grad_own, grad_read, shape)
  FOR_EACH_D_HEAD(CALL)
#undef CALL
}

extern "C" int exponentials(float* logits, float* tops, float* totals, int64_t rows, int64_t width,
                            int threads) {
  exponentials_rows(logits, tops, totals, rows, width, threads);
  return 0;
}

// Asks for large pages under memory that has just been allocated; where there are none, nothing.
extern "C" int large_pages(char* memory, int64_t bytes, int) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = sysconf(_SC_PAGESIZE), begin = uintptr_t(memory);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return 0;
}

extern "C" int gelu_forward(const float* x, float* y, int64_t n, int threads) {
  each(n, threads, [=](int64_t at, int count) {
    store_some(y + at, gelu(load_some(x + at, count)), count);
  });
  return 0;
}

extern "C" int gelu_backward(const float* grad_y, const float* x, float* grad_x, int64_t n,
                             int threads) {
  each(n, threads, [=](int64_t at, int count) {
    const Vec input = load_some(x + at, count);
    const Vec slope = gelu_slope(input, gelu_sigmoid(input));
    store_some(grad_x + at, load_some(grad_y + at, count) * slope, count);
  });
  return 0;
}

extern "C" int k_winners_forward(const float* scores, float* mask, float* ranks, int64_t rows,
                                 int64_t units, int64_t stride, int64_t k, int64_t soft,
                                 float temperature, float least, float least_spread, int threads) {
  k_winners_rows(scores, mask, reinterpret_cast<Rank*>(ranks), rows, units, stride, k, soft,
                 temperature, least, least_spread, threads);
  return 0;
}

extern "C" int k_winners_backward(const float* scores, const float* ranks,
                                  const float* grad_weights, float* grad_scores, int64_t rows,
                                  int64_t units, int64_t stride, int64_t detached_floor,
                                  float temperature, int threads) {
  k_winners_gradient(scores, reinterpret_cast<const Rank*>(ranks), grad_weights, grad_scores, rows,
                     units, stride, detached_floor, temperature, threads);
  return 0;
}

extern "C" int masked_gelu_backward(const float* grad_y, const float* x, const float* mask,
                                    float* grad_x, float* grad_mask, int64_t n, int threads) {
  each(n, threads, [=](int64_t at, int count) {
    const Vec input = load_some(x + at, count), pulled = load_some(grad_y + at, count);
    const Vec share = gelu_sigmoid(input);
    store_some(grad_x + at, pulled * load_some(mask + at, count) * gelu_slope(input, share), count);
    store_some(grad_mask + at, pulled * input * share, count);
  });
  return 0;
}

extern "C" int winners_product(const float* x, const float* mask, const float* weight, float* out,
                               int64_t rows, int64_t units, int64_t width, int64_t is_gelu,
                               int threads) {
  winners_product_rows(x, mask, weight, out, rows, units, width, is_gelu, threads);
  return 0;
}

extern "C" int winners_outer(const float* x, const float* mask, const float* y, float* out,
                             int64_t rows, int64_t units, int64_t width, int64_t is_gelu,
                             int threads) {
  winners_outer_columns(x, mask, y, out, rows, units, width, is_gelu, threads);
  return 0;
}
