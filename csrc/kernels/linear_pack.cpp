#include "kernels/linear_pack.hpp"

#include <cstring>

#include "kernels/linear_layout.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

namespace {

// Eight int4 codes, two a byte in order, as four bytes with code i in a low nibble and code i + 4 in the high one. Codes
// become 0..15: of two's complement, the flip of the highest bit is the addition of 8.
uint32_t spread(uint32_t codes) {
  codes ^= 0x88888888u;
  uint32_t swap = (codes ^ codes >> 8) & 0x0000FF00u;
  codes ^= swap ^ swap << 8;
  swap = (codes ^ codes >> 4) & 0x00F000F0u;
  return codes ^ swap ^ swap << 4;
}

// Codes [first, first + count) of a row, count <= 8, with zero bits behind them.
uint32_t spread_part(const uint8_t* row, int64_t first, int64_t count) {
  uint32_t codes = 0, valid = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = row[(first + i) / 2] >> ((first + i) % 2 * 4) & 15;
    codes |= code << 4 * i;
    valid |= 15u << 4 * i;
  }
  return spread((codes & valid) | (0x88888888u & ~valid));
}

void dequantize(const int8_t* codes, int64_t channels, float scale, float* out) {
  const F32 factor = F32::broadcast(scale);
  int64_t c = 0;
  for (; c + F32::width <= channels; c += F32::width) (F32::load_i8(codes + c) * factor).store(out + c);
  if (const int n = static_cast<int>(channels - c)) {
    (F32::load_first_i8(codes + c, n) * factor).store_first(out + c, n);
  }
}

// Codes in groups, behind each of which put(to, column, group) writes the factors of a column, `behind` bytes for all.
// Behind the ends of N and of a group stand zero bytes.
template <class Put>
void pack_groups(const uint8_t* codes, int64_t n, int64_t k, int64_t group, int64_t behind, int64_t first, int64_t last,
                 uint8_t* packed, const Put& put) {
  const int64_t groups = k / group, stride = k / 2, bytes = int4_steps(group) * step_bytes + behind;
  for (int64_t panel = first; panel < last; ++panel) {
    const uint8_t* rows = codes + panel * panel_columns * stride;
    const int64_t columns = columns_of(n, panel);
    uint8_t* to = packed + panel * groups * bytes;
    for (int64_t g = 0; g < groups; ++g) {
      memset(to, 0, bytes);
      for (int64_t i = 0; i < group; i += 8, to += step_bytes) {
        const int64_t at = g * group + i;
        for (int64_t c = 0; c < columns; ++c) {
          uint32_t eight;
          if (at % 2 == 0 && group - i >= 8) {
            memcpy(&eight, rows + c * stride + at / 2, 4);
            eight = spread(eight);
          } else {
            eight = spread_part(rows + c * stride, at, group - i < 8 ? group - i : 8);
          }
          memcpy(to + c * 4, &eight, 4);
        }
      }
      for (int64_t c = 0; c < columns; ++c) put(to, c, (panel * panel_columns + c) * groups + g);
      to += behind;
    }
  }
}

template <class Factor>
void pack_groups(const uint8_t* codes, const Factor* factors, int64_t n, int64_t k, int64_t group, int64_t first, int64_t last,
                 uint8_t* packed) {
  pack_groups(codes, n, k, group, factor_bytes<Factor>, first, last, packed, [&](uint8_t* to, int64_t column, int64_t at) {
    memcpy(to + column * sizeof(Factor), factors + at, sizeof(Factor));
  });
}

// Numbers, as convert(value) makes them of the type that they are packed as. Behind the end of N stand zeros.
template <class Packed, class Value, class Convert>
void pack_numbers(const Value* values, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed,
                  const Convert& convert) {
  constexpr int64_t together = 16;  // columns, whose values of one line meet before it is forgotten
  for (int64_t panel = first; panel < last; ++panel) {
    const Value* rows = values + panel * panel_columns * k;
    const int64_t columns = columns_of(n, panel);
    Packed* to = reinterpret_cast<Packed*>(packed) + panel * k * panel_columns;
    for (int64_t start = 0; start < panel_columns; start += together) {
      const int64_t end = start + together < panel_columns ? start + together : panel_columns;
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t c = start; c < end; ++c) {
          to[i * panel_columns + c] = c < columns ? convert(rows[c * k + i]) : Packed{};
        }
      }
    }
  }
}

// Column `column` of a panel of numbers, `load` reading them a vector at a time.
template <class Number, class Load>
void embed_numbers(const uint8_t* panel, int64_t column, int64_t k, float* out, const Load& load) {
  Number numbers[512];
  const Number* from = reinterpret_cast<const Number*>(panel) + column;
  for (int64_t at = 0; at < k; at += 512) {
    const int64_t part = k - at < 512 ? k - at : 512;
    for (int64_t i = 0; i < part; ++i) numbers[i] = from[(at + i) * panel_columns];
    each_vector(part, [&](int64_t i, auto lanes) { store(load(numbers + i, lanes), out + at + i, lanes); });
  }
}

F32 load_bf16(const uint16_t* p, All) { return F32::load_bf16(p); }
F32 load_bf16(const uint16_t* p, First lanes) {
  uint16_t all[F32::width] = {};
  memcpy(all, p, sizeof(uint16_t) * static_cast<size_t>(lanes.n));
  return F32::load_bf16(all);
}

}  // namespace

int64_t packed_bytes(const LinearWeight& weight) { return panels_of(weight.n) * panel_bytes(weight); }

// Behind the ends of N and K stand zero bytes: their products vanish, whatever x holds there.
void pack_int8(const int8_t* codes, int64_t stride, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed) {
  constexpr uint32_t offsets = Dot::offset * 0x01010101u;
  for (int64_t panel = first; panel < last; ++panel) {
    const int8_t* rows = codes + panel * panel_columns * stride;
    const int64_t columns = columns_of(n, panel);
    uint8_t* to = packed + panel * int8_steps(k) * step_bytes;
    for (int64_t at = 0; at < k; at += 4, to += step_bytes) {
      const size_t count = k - at < 4 ? k - at : 4;
      for (int64_t c = 0; c < columns; ++c) {
        uint32_t four = 0;
        if (count == 4) {
          memcpy(&four, rows + c * stride + at, 4);
          four ^= offsets;  // of two's complement, the same as adding the offset to each code
        } else {
          memcpy(&four, rows + c * stride + at, count);
          four ^= offsets >> (32 - 8 * count);
        }
        memcpy(to + c * 4, &four, 4);
      }
      memset(to + columns * 4, 0, (panel_columns - columns) * 4);
    }
  }
}

void pack_int4(const uint8_t* codes, const float* scale, int64_t n, int64_t k, int64_t group, int64_t first, int64_t last,
               uint8_t* packed) {
  pack_groups(codes, scale, n, k, group, first, last, packed);
}

void pack_int4_progressive(const uint8_t* codes, const uint8_t* grid, int64_t n, int64_t k, int64_t group, int64_t first,
                           int64_t last, uint8_t* packed) {
  pack_groups(codes, grid, n, k, group, first, last, packed);
}

void pack_int4_asymmetric(const uint8_t* codes, const float* scale, const int8_t* zero_point, int64_t n, int64_t k, int64_t group,
                          int64_t first, int64_t last, uint8_t* packed) {
  const int64_t behind = factor_bytes<float> + factor_bytes<int8_t>;
  pack_groups(codes, n, k, group, behind, first, last, packed, [&](uint8_t* to, int64_t column, int64_t at) {
    memcpy(to + column * sizeof(float), scale + at, sizeof(float));
    memcpy(to + factor_bytes<float> + column, zero_point + at, 1);
  });
}

void pack_halves(const uint16_t* values, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed) {
  pack_numbers<uint16_t>(values, n, k, first, last, packed, [](uint16_t half) { return half; });
}

void pack_singles(const float* values, WeightType type, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed) {
  if (type == WeightType::float32) {
    pack_numbers<float>(values, n, k, first, last, packed, [](float value) { return value; });
  } else if (type == WeightType::bfloat16) {
    pack_numbers<uint16_t>(values, n, k, first, last, packed, [](float value) {
      uint32_t bits;
      memcpy(&bits, &value, sizeof(bits));
      return static_cast<uint16_t>(bits >> 16);
    });
  } else {
    pack_numbers<uint16_t>(values, n, k, first, last, packed, [](float value) {
      uint16_t halves[F32::width];
      F32::broadcast(value).store_f16(halves);
      return halves[0];
    });
  }
}

void embed(const int8_t* codes, int64_t k, Scale scale, const int64_t* ids, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) dequantize(codes + ids[i] * k, k, scale.values[ids[i] * scale.step], out + i * k);
}

void embed_int4(const uint8_t* codes, const float* scale, int64_t k, int64_t group, const int64_t* ids, int64_t count,
                float* out) {
  for (int64_t i = 0; i < count; ++i, out += k) {
    const uint8_t* row = codes + ids[i] * (k / 2);
    for (int64_t c = 0; c < k; ++c) {
      const int code = ((row[c / 2] >> c % 2 * 4 & 15) ^ 8) - 8;  // of two's complement
      out[c] = static_cast<float>(code) * scale[ids[i] * (k / group) + c / group];
    }
  }
}

namespace {

void embed_int8(const uint8_t* panel, int64_t column, int64_t k, float factor, float* out) {
  int8_t codes[512];
  for (int64_t at = 0; at < k; at += sizeof(codes)) {
    const int64_t part = k - at < int64_t{sizeof(codes)} ? k - at : int64_t{sizeof(codes)};
    for (int64_t c = 0; c < part; c += 4) {
      uint32_t four;
      memcpy(&four, panel + column * 4 + (at + c) / 4 * step_bytes, 4);
      four ^= Dot::offset * 0x01010101u;
      memcpy(codes + c, &four, 4);
    }
    dequantize(codes, part, factor, out + at);
  }
}

void embed_groups(const uint8_t* panel, int64_t column, int64_t k, int64_t group, float* out) {
  for (int64_t start = 0; start < k; start += group, panel += group_bytes<float>(group)) {
    float scale;
    memcpy(&scale, panel + int4_steps(group) * step_bytes + column * sizeof(float), sizeof(float));
    for (int64_t i = 0; i < group; ++i) {
      const uint8_t byte = panel[i / 8 * step_bytes + column * 4 + i % 4];
      out[start + i] = static_cast<float>((byte >> (i % 8 < 4 ? 0 : 4) & 15) - 8) * scale;
    }
  }
}

}  // namespace

void embed_packed(const LinearWeight& weight, Scale scale, const int64_t* ids, int64_t count, float* out) {
  const int64_t bytes = panel_bytes(weight), k = weight.k;
  for (int64_t i = 0; i < count; ++i, out += k) {
    const uint8_t* panel = weight.packed + ids[i] / panel_columns * bytes;
    const int64_t column = ids[i] % panel_columns;
    switch (weight.type) {
      case WeightType::int8:
        embed_int8(panel, column, k, scale.values[ids[i] * scale.step], out);
        break;
      case WeightType::int4:
        embed_groups(panel, column, k, weight.group, out);
        break;
      case WeightType::bfloat16:
        embed_numbers<uint16_t>(panel, column, k, out, [](const uint16_t* p, auto lanes) { return load_bf16(p, lanes); });
        break;
      case WeightType::float16:
        embed_numbers<F16>(panel, column, k, out, [](const F16* p, auto lanes) { return load(p, lanes); });
        break;
      case WeightType::float32:
        embed_numbers<float>(panel, column, k, out, [](const float* p, auto lanes) { return load(p, lanes); });
        break;
      default:
        break;  // no embedding is stored so
    }
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
