// What kernels take and give: codes with their scale, or floats.
#pragma once

#include <cstdint>

namespace ssmquant {

// A static scale for one tensor or one a channel: `step` is 0 or 1, so that channel c has values[c * step].
struct Scale {
  const float* values;
  int64_t step;
};

// Rows of channels to read: int8 codes under a scale, or, where `codes` is null, floats. `stride`: elements between rows.
struct Input {
  const int8_t* codes;
  const float* floats;
  Scale scale;  // of the codes
  int64_t stride;
};

// Rows of channels to write: int8 codes under the reciprocals of a scale (1 / scale, rounded to float32), or, where `codes` is
// null, floats. `stride` is the elements between rows.
struct Output {
  int8_t* codes;
  float* floats;
  Scale reciprocal;
  int64_t stride;
};

// A recurrent state at rest.
enum class StateType { float32, float16, int8 };
inline int64_t element_bytes(StateType type) { return type == StateType::int8 ? 1 : type == StateType::float16 ? 2 : 4; }

}  // namespace ssmquant
