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

// One head of one row of projections, (rows, pos, 3, heads, D): queries, keys, values.
template <int D>
struct Item {
  int64_t step, slot;  // floats from one position to the next, and from queries to keys to values
  int64_t offset;
  Item(int64_t row, int64_t head, int64_t heads, int64_t pos)
      : step(3 * heads * D), slot(heads * D), offset(row * pos * step + head * D) {}
  template <typename Float>
  Float* at(Float* base, int which, int64_t position) const {
    return base + offset + position * step + which * slot;
  }
};

// Rows of a (pos, D) slice, positions along the lanes: [D][padded], zeros behind the last.
template <int D>
static void transpose(const Item<D>& item, const float* base, int which, int64_t pos,
                      int64_t padded, float* out) {
  for (int64_t j = 0; j < pos; j++) {
    const float* from = item.at(base, which, j);
    for (int d = 0; d < D; d++) out[d * padded + j] = from[d];
  }
  for (int d = 0; d < D; d++)
    for (int64_t j = pos; j < padded; j++) out[d * padded + j] = 0;
}

template <int D>
static inline Vec dot(const float* vector, const float* columns, int64_t padded, int64_t j) {
  Vec total = vector[0] * load(columns + j);
  for (int d = 1; d < D; d++) total += vector[d] * load(columns + d * padded + j);
  return total;
}

// Row r of `own` attends to itself at its own position and to row r % batch of `read` at earlier
// ones; `own` holds `streams` * batch rows and may be `read` itself.
struct Shape {
  int64_t streams, batch, pos, heads;
  float scale;
  int threads;
  int64_t padded() const { return (pos + W - 1) / W * W; }
  // Of (rows, pos, heads, D), and of (rows, heads, pos).
  int64_t z_at(int64_t row, int64_t i, int64_t head, int d) const {
    return ((row * pos + i) * heads + head) * d;
  }
  int64_t lse_at(int64_t row, int64_t i, int64_t head) const {
    return (row * heads + head) * pos + i;
  }
};

template <int D>
static void forward(const float* own, const float* read, float* z, float* lse,
                    const Shape& shape) {
  const int64_t pos = shape.pos, heads = shape.heads, padded = shape.padded();
#pragma omp parallel num_threads(shape.threads)
  {
    std::vector<float> memory((2 * D + 1) * padded);
    float *keys = memory.data(), *values = keys + D * padded, *scores = values + D * padded;
#pragma omp for schedule(static)
    for (int64_t index = 0; index < shape.batch * heads; index++) {
      const int64_t head = index % heads, read_row = index / heads;
      const Item<D> past(read_row, head, heads, pos);
      transpose<D>(past, read, 1, pos, padded, keys);
      transpose<D>(past, read, 2, pos, padded, values);
      for (int64_t row = read_row; row < shape.streams * shape.batch; row += shape.batch) {
        const Item<D> self(row, head, heads, pos);
        for (int64_t i = 0; i < pos; i++) {
          const float *own_key = self.at(own, 1, i), *own_value = self.at(own, 2, i);
          float query[D], own_score = 0;
          for (int d = 0; d < D; d++) {
            query[d] = self.at(own, 0, i)[d] * shape.scale;
            own_score += query[d] * own_key[d];
          }
          Vec largest = all(own_score);
          for (int64_t j = 0; j < i; j += W) {
            Vec score = dot<D>(query, keys, padded, j);
            if (j + W > i) score = lanes() < float(i - j) ? score : all(-INFINITY);
            store(scores + j, score);
            largest = larger(largest, score);
          }
          const float top = maximum(largest);
          const float own_weight = exponential(all(own_score - top))[0];
          Vec total{}, sums[D] = {};
          for (int64_t j = 0; j < i; j += W) {
            Vec weight = exponential(load(scores + j) - top);
            if (j + W > i) weight = lanes() < float(i - j) ? weight : Vec{};
            total += weight;
            for (int d = 0; d < D; d++) sums[d] += weight * load(values + d * padded + j);
          }
          const float mass = sum(total) + own_weight;
          float* out = z + shape.z_at(row, i, head, D);
          for (int d = 0; d < D; d++) out[d] = (sum(sums[d]) + own_weight * own_value[d]) / mass;
          lse[shape.lse_at(row, i, head)] = top + std::log(mass);
        }
      }
    }
  }
}

// Adds to grad_own (all of it) and to grad_read (keys and values); the two may be the same.
template <int D>
static void backward(const float* own, const float* read, const float* z, const float* lse,
                     const float* grad_z, float* grad_own, float* grad_read, const Shape& shape) {
  const int64_t pos = shape.pos, heads = shape.heads, padded = shape.padded();
#pragma omp parallel num_threads(shape.threads)
  {
    std::vector<float> memory(4 * D * padded);
    float *keys = memory.data(), *values = keys + D * padded;
    float *grad_keys = values + D * padded, *grad_values = grad_keys + D * padded;
#pragma omp for schedule(static)
    for (int64_t index = 0; index < shape.batch * heads; index++) {
      const int64_t head = index % heads, read_row = index / heads;
      const Item<D> past(read_row, head, heads, pos);
      transpose<D>(past, read, 1, pos, padded, keys);
      transpose<D>(past, read, 2, pos, padded, values);
      std::fill(grad_keys, grad_keys + 2 * D * padded, 0.0f);
      for (int64_t row = read_row; row < shape.streams * shape.batch; row += shape.batch) {
        const Item<D> self(row, head, heads, pos);
        for (int64_t i = 0; i < pos; i++) {
          const int64_t at = shape.z_at(row, i, head, D);
          const float *own_key = self.at(own, 1, i), *own_value = self.at(own, 2, i);
          float query[D], pull[D], own_score = 0, delta = 0, own_pull = 0;
          for (int d = 0; d < D; d++) {
            query[d] = self.at(own, 0, i)[d] * shape.scale;
            pull[d] = grad_z[at + d];
            own_score += query[d] * own_key[d];
            delta += pull[d] * z[at + d];
            own_pull += pull[d] * own_value[d];
          }
          const float row_lse = lse[shape.lse_at(row, i, head)];
          Vec sums[D] = {};
          for (int64_t j = 0; j < i; j += W) {
            Vec weight = exponential(dot<D>(query, keys, padded, j) - row_lse);
            if (j + W > i) weight = lanes() < float(i - j) ? weight : Vec{};
            Vec grad_score = weight * (dot<D>(pull, values, padded, j) - delta);
            for (int d = 0; d < D; d++) {
              const int64_t to = d * padded + j;
              sums[d] += grad_score * load(keys + to);
              store(grad_keys + to, load(grad_keys + to) + grad_score * query[d]);
              store(grad_values + to, load(grad_values + to) + weight * pull[d]);
            }
          }
          const float own_weight = exponential(all(own_score - row_lse))[0];
          const float grad_own_score = own_weight * (own_pull - delta);
          float *to_query = self.at(grad_own, 0, i), *to_key = self.at(grad_own, 1, i),
                *to_value = self.at(grad_own, 2, i);
          for (int d = 0; d < D; d++) {
            to_query[d] += (sum(sums[d]) + grad_own_score * own_key[d]) * shape.scale;
            to_key[d] += grad_own_score * query[d];
            to_value[d] += own_weight * pull[d];
          }
        }
      }
      for (int64_t j = 0; j < pos; j++) {
        float *to_key = past.at(grad_read, 1, j), *to_value = past.at(grad_read, 2, j);
        for (int d = 0; d < D; d++) {
          to_key[d] += grad_keys[d * padded + j];
          to_value[d] += grad_values[d * padded + j];
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
