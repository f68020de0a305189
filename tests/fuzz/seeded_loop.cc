// Runs a fuzz target without libFuzzer: deterministic mutations over its seeds. The same build finds the same
// inputs on every machine, so that a failure in CI is a failure here.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
__attribute__((weak)) std::vector<std::string> fuzz_seeds();
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*)());

namespace {

constexpr std::size_t kMaxInput = 1 << 20;
constexpr unsigned kMaxSecondsPerInput = 30;

std::string g_input, g_crash_file;

/// Async-signal-safe: keeps the input that was running.
void keep_input() {
  const int fd = ::open(g_crash_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return;
  for (std::size_t at = 0; at < g_input.size();) {
    const ssize_t n = ::write(fd, g_input.data() + at, g_input.size() - at);
    if (n <= 0) break;
    at += static_cast<std::size_t>(n);
  }
  ::close(fd);
  constexpr char kSaid[] = "the input that failed is in ";
  (void)!::write(2, kSaid, sizeof kSaid - 1);
  (void)!::write(2, g_crash_file.data(), g_crash_file.size());
  (void)!::write(2, "\n", 1);
}

void on_signal(int number) {
  if (number == SIGALRM) {
    constexpr char kSaid[] = "one input took more than 30 s\n";
    (void)!::write(2, kSaid, sizeof kSaid - 1);
  }
  keep_input();
  std::signal(number == SIGALRM ? SIGABRT : number, SIG_DFL);
  ::raise(number == SIGALRM ? SIGABRT : number);
}

/// splitmix64.
struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return n == 0 ? 0 : next() % n; }
};

constexpr std::uint64_t kInteresting[] = {0,           1,          2,          31,         32,
                                          127,         128,        255,        256,        0x7fff,
                                          0xffff,      0x10000,    0x7fffffff, 0x80000000, 0xffffffff,
                                          0x100000000, 1ull << 62, 1ull << 63, ~0ull,      ~0ull - 7};
constexpr const char* kTexts[] = {"-1",
                                  "0",
                                  "1e999",
                                  "18446744073709551615",
                                  "9223372036854775807",
                                  "null",
                                  "true",
                                  "[]",
                                  "{}",
                                  "\"\"",
                                  "[[[[[[[[",
                                  "\\u0000",
                                  "\\ud800",
                                  "\xff",
                                  "\xe2\x96"};

/// Near the front most of the time: that is where headers are.
std::size_t place(Random& random, std::size_t size) {
  const std::size_t within =
      random.below(4) == 0 ? size : std::min<std::size_t>(size, 256u << random.below(6));
  return random.below(within);
}

void mutate(std::string& input, const std::vector<std::string>& seeds, Random& random) {
  for (std::size_t rounds = 1 + random.below(4); rounds > 0; --rounds) {
    const std::size_t at = place(random, input.size());
    switch (random.below(10)) {
      case 0:
        if (!input.empty()) input[at] = static_cast<char>(input[at] ^ (1 << random.below(8)));
        break;
      case 1:
        if (!input.empty()) input[at] = static_cast<char>(random.next());
        break;
      case 2:
        input.resize(random.below(input.size() + 1));
        break;
      case 3:  // an integer of 1, 2, 4 or 8 bytes
      case 4: {
        const std::size_t width = std::size_t{1} << random.below(4);
        const std::uint64_t value = kInteresting[random.below(std::size(kInteresting))];
        if (input.size() >= width)
          std::memcpy(&input[random.below(2) == 0 ? at / width * width % (input.size() - width + 1)
                                                  : std::min(at, input.size() - width)],
                      &value, width);
        break;
      }
      case 5:
        input.erase(at, 1 + random.below(16));
        break;
      case 6:
        input.insert(at, std::string(1 + random.below(16), static_cast<char>(random.next())));
        break;
      case 7: {  // a piece of a seed, put in or written over
        const std::string& other = seeds[random.below(seeds.size())];
        const std::size_t from = random.below(other.size() + 1), length = random.below(64);
        if (random.below(2) == 0)
          input.insert(at, other, from, length);
        else
          input.replace(at, length, other, from, length);
        break;
      }
      case 8: {  // a number written in digits becomes another text
        const std::size_t digit = input.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const std::size_t end = std::min(input.find_first_not_of("0123456789", digit), input.size());
        input.replace(digit, end - digit, kTexts[random.below(std::size(kTexts))]);
        break;
      }
      default:
        input.insert(at, kTexts[random.below(std::size(kTexts))]);
    }
  }
  if (input.size() > kMaxInput) input.resize(kMaxInput);
}

long setting(const char* name, long fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::atol(text);
}

/// From memory of exactly the input's size, so that a read past the end is one for AddressSanitizer.
void run() {
  std::vector<std::uint8_t> exact(g_input.begin(), g_input.end());
  exact.shrink_to_fit();
  ::alarm(kMaxSecondsPerInput);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  ::alarm(0);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string program = argv[0];
  g_crash_file = "crash-" + program.substr(program.rfind('/') + 1);
  for (const int number : {SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL}) std::signal(number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(keep_input);
  } else {
    std::signal(SIGSEGV, on_signal);
    // No decoder may ask for memory without bound; sanitizers reserve too much address space for this.
    const rlimit limit{4ull << 30, 4ull << 30};
    ::setrlimit(RLIMIT_AS, &limit);
  }
  std::vector<std::string> seeds;
  if (fuzz_seeds != nullptr) seeds = fuzz_seeds();
  seeds.emplace_back();
  if (argc == 3 && argv[1] == std::string("--seeds")) {  // a corpus for libFuzzer to begin from
    for (std::size_t i = 0; i < seeds.size(); ++i)
      if (!(std::ofstream(argv[2] + ("/seed-" + std::to_string(i)), std::ios::binary) << seeds[i])) return 1;
    return 0;
  }
  if (argc > 1) {
    for (int i = 1; i < argc; ++i) {
      std::ifstream file(argv[i], std::ios::binary);
      g_input.assign(std::istreambuf_iterator<char>(file), {});
      run();
    }
    return 0;
  }
  for (const std::string& seed : seeds) {
    g_input = seed;
    run();
  }
  const long seconds = setting("RETORT_FUZZ_SECONDS", 5);
  const long iterations =
      setting("RETORT_FUZZ_ITERATIONS", std::getenv("RETORT_FUZZ_SECONDS") != nullptr ? 1L << 60 : 20000);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  long done = 0;
  for (; done < iterations && std::chrono::steady_clock::now() < end; ++done) {
    Random random{static_cast<std::uint64_t>(done) * 0x2545f4914f6cdd1dull + 1};
    g_input = seeds[random.below(seeds.size())];
    mutate(g_input, seeds, random);
    run();
  }
  std::printf("%ld mutations of %zu seeds\n", done, seeds.size());
  return done > 0 ? 0 : 1;
}
