#include "common/core/fail_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdlib>
#include <string>

#include "common/core/log.h"

namespace retort {
namespace {

struct Armed {
  std::string name;  ///< empty: none
  std::atomic<long> passings{1};
  Armed() {
    const char* text = std::getenv("RETORT_FAIL_POINT");
    if (text == nullptr) return;
    name = text;
    const std::size_t colon = name.rfind(':');
    if (colon == std::string::npos) return;
    long count = 0;
    const auto [end, bad] = std::from_chars(name.data() + colon + 1, name.data() + name.size(), count);
    if (bad != std::errc() || end != name.data() + name.size() || count < 1) return;
    passings = count;
    name.resize(colon);
  }
};

}  // namespace

void fail_point(std::string_view name) {
  static Armed armed;
  if (armed.name.empty() || armed.name != name || --armed.passings != 0) return;
  log_warn("fail point {}: this process ends here", name);
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();  // the signal may reach another thread first
}

}  // namespace retort
