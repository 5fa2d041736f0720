// The name by which operators are told a cell: "lstm", or with a bound for the gradient of its h "lstm@0.5".
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>

#include <cmath>
#include <locale>
#include <sstream>
#include <string>

namespace fastrnn {

inline std::string without_bound(c10::string_view name) { return std::string(name.substr(0, name.find('@'))); }

// 0: none. Raises ValueError for what is no positive number.
inline double bound_of(c10::string_view name) {
  const size_t at = name.find('@');
  if (at == c10::string_view::npos) return 0;
  std::istringstream text{std::string(name.substr(at + 1))};
  text.imbue(std::locale::classic());  // a point, whatever the program has chosen
  double bound = 0;
  const bool read = static_cast<bool>(text >> bound) && text.eof();
  TORCH_CHECK_VALUE(read && bound > 0 && std::isfinite(bound), "cell: expected a positive number behind @, got ",
                    std::string(name));
  return bound;
}

}  // namespace fastrnn
