// The CPU kernels of training: attention with small heads, and the softmax's gradient.
//
// Fused attention libraries are made for heads of 64 and more; at the paper's 8 they spend their
// time on bookkeeping. Here one (batch, head) pair is a work item: its keys and values are laid out
// with positions along the vector lanes and stay in the first-level cache, a query row is one sweep
// over them, and no pattern is ever stored. Each item is computed by one thread, in one order, so
// the number of threads changes no bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

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

// Logits become weight * (softmax - onehot of the target); nats: each row's cross-entropy.
static void softmax_gradient_rows(float* logits, const int64_t* targets, float* nats, int64_t rows,
                                  int64_t width, float weight, int threads) {
  const int64_t whole = width / W * W;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    float* x = logits + row * width;
    Vec largest = all(-INFINITY);
    for (int64_t j = 0; j < whole; j += W) largest = larger(largest, load(x + j));
    float top = maximum(largest);
    for (int64_t j = whole; j < width; j++) top = std::max(top, x[j]);
    const float target = x[targets[row]] - top;
    Vec total{};
    double mass = 0;
    for (int64_t start = 0; start < whole; start += 1024 * W) {  // partial sums keep their digits
      total = Vec{};
      for (int64_t j = start; j < std::min(whole, start + 1024 * W); j += W) {
        Vec e = exponential(load(x + j) - top);
        store(x + j, e);
        total += e;
      }
      mass += sum(total);
    }
    for (int64_t j = whole; j < width; j++) mass += x[j] = exponential(all(x[j] - top))[0];
    const float factor = weight / mass;
    for (int64_t j = 0; j < whole; j += W) store(x + j, load(x + j) * factor);
    for (int64_t j = whole; j < width; j++) x[j] *= factor;
    x[targets[row]] -= weight;
    nats[row] = float(std::log(mass)) - target;
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
static inline Vec gelu_slope(Vec x) {
  const Vec share = gelu_sigmoid(x);
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

extern "C" int softmax_gradient(float* logits, const int64_t* targets, float* nats, int64_t rows,
                                int64_t width, float weight, int threads) {
  softmax_gradient_rows(logits, targets, nats, rows, width, weight, threads);
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
    const Vec pulled = load_some(grad_y + at, count) * gelu_slope(load_some(x + at, count));
    store_some(grad_x + at, pulled, count);
  });
  return 0;
}
