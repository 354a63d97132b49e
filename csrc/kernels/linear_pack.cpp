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

// Codes in groups, and a factor for each. Behind the ends of N and of a group stand zero bytes.
template <class Factor>
void pack_groups(const uint8_t* codes, const Factor* factors, int64_t n, int64_t k, int64_t group, int64_t first, int64_t last,
                 uint8_t* packed) {
  const int64_t groups = k / group, stride = k / 2;
  for (int64_t panel = first; panel < last; ++panel) {
    const uint8_t* rows = codes + panel * panel_columns * stride;
    const Factor* of_rows = factors + panel * panel_columns * groups;
    const int64_t columns = columns_of(n, panel);
    uint8_t* to = packed + panel * groups * group_bytes<Factor>(group);
    for (int64_t g = 0; g < groups; ++g) {
      memset(to, 0, group_bytes<Factor>(group));
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
      for (int64_t c = 0; c < columns; ++c) memcpy(to + c * sizeof(Factor), of_rows + c * groups + g, sizeof(Factor));
      to += factor_bytes<Factor>;
    }
  }
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

void embed(const int8_t* codes, int64_t k, Scale scale, const int64_t* ids, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) dequantize(codes + ids[i] * k, k, scale.values[ids[i] * scale.step], out + i * k);
}

void embed_packed(const LinearWeight& weight, Scale scale, const int64_t* ids, int64_t count, float* out) {
  const int64_t bytes = panel_bytes(weight);
  int8_t codes[512];
  for (int64_t i = 0; i < count; ++i, out += weight.k) {
    const uint8_t* column = weight.packed + ids[i] / panel_columns * bytes + ids[i] % panel_columns * 4;
    const float factor = scale.values[ids[i] * scale.step];
    for (int64_t at = 0; at < weight.k; at += sizeof(codes)) {
      const int64_t part = weight.k - at < int64_t{sizeof(codes)} ? weight.k - at : int64_t{sizeof(codes)};
      for (int64_t c = 0; c < part; c += 4) {
        uint32_t four;
        memcpy(&four, column + (at + c) / 4 * step_bytes, 4);
        four ^= Dot::offset * 0x01010101u;
        memcpy(codes + c, &four, 4);
      }
      dequantize(codes, part, factor, out + at);
    }
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
