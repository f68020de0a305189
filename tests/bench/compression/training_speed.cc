// What share of the machine's matrix products training reaches: the floating-point operations of a step's
// products over the step's time, beside the same products alone. Of a Llama's folder, 16 windows of 128.
//
//   bench_training scripts/demo-teacher/model [SECONDS [THREADS]]
//
// (the demo teacher has 4 layers of 256, FFN 768, 8 heads and 4,096 tokens)

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "common/core/random.h"
#include "common/hf/hf_model.h"
#include "coordinator/worker/blas.h"
#include "coordinator/worker/optimise.h"
#include "coordinator/worker/plan.h"
#include "tests/support/text_step.h"

namespace {

using namespace retort;
using at::Tensor;

constexpr std::int64_t kWindows = 16, kWindow = 128, kTokens = kWindows * kWindow;

/// The shortest of a few times of one call, in seconds.
template <typename Call>
double shortest(const Call& call, double seconds) {
  call();
  double best = 1e9, all = 0;
  while (all < seconds) {
    const auto start = std::chrono::steady_clock::now();
    call();
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::min(best, took), all += took;
  }
  return best;
}

struct Products {
  double flops = 0, seconds = 0;

  /// `times` layers of [tokens, in] to [tokens, out], there and back.
  void linear(std::int64_t in, std::int64_t out, int times, at::ScalarType type) {
    const Tensor x = at::randn({kTokens, in}).to(type), w = at::randn({out, in}).to(type),
                 dy = at::randn({kTokens, out}).to(type);
    add(6.0 * kTokens * static_cast<double>(in * out), times, [&] {
      at::linear(x, w);
      at::mm(dy, w);
      at::mm(dy.t(), x);
    });
  }
  /// Scores and sums of values of one layer's heads, there and back.
  void attention(std::int64_t heads, std::int64_t width, int times, at::ScalarType type) {
    const Tensor q = at::randn({kWindows * heads, kWindow, width}).to(type), k = at::randn_like(q),
                 v = at::randn_like(q), p = at::randn({kWindows * heads, kWindow, kWindow}).to(type);
    add(12.0 * static_cast<double>(kWindows * heads * kWindow * kWindow * width), times, [&] {
      at::bmm(q, k.transpose(1, 2)), at::bmm(p, k), at::bmm(p.transpose(1, 2), q);
      at::bmm(p, v), at::bmm(q, v.transpose(1, 2)), at::bmm(p.transpose(1, 2), v);
    });
  }

 private:
  template <typename Call>
  void add(double each, int times, const Call& call) {
    flops += each * times;
    seconds += shortest(call, 0.5) * times;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fputs("bench_training FOLDER [SECONDS [THREADS]]\n", stderr), 2;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 10;
  settle_process(argc > 3 ? std::atoi(argv[3]) : 2, argv);
  const auto opened = open_hf_model(argv[1]);
  if (!opened) return std::fprintf(stderr, "%s\n", opened.error().describe().c_str()), 1;
  const ModelConfig& c = opened->config;
  std::string letters;
  SeededRandom random(1);
  for (int i = 0; i < 1000000; ++i)
    letters += i % 6 == 5 ? ' ' : static_cast<char>('a' + random.next_u64() % 26);
  TokenStream stream = TokenStream::make(std::vector<std::string>{letters}, opened->tokenizer).value();
  std::printf("512×512×512 in F32: %.0f GFLOP/s\n", matrix_product_rate() / 1e9);
  for (const bool bf16 : {false, true}) {
    if (bf16 && !has_bf16(at::kCPU)) break;
    torch::NoGradGuard no_grad;
    const at::ScalarType type = bf16 ? at::kBFloat16 : at::kFloat;
    Products products;
    const int layers = static_cast<int>(c.layers.size());
    products.linear(c.n_embd, c.n_embd, 4 * layers, type);
    products.linear(c.n_embd, c.layers[0].n_ff, 2 * layers, type);
    products.linear(c.layers[0].n_ff, c.n_embd, layers, type);
    products.linear(c.n_embd, c.n_vocab, 1, type);
    products.attention(c.layers[0].n_head, c.head_dim, layers, type);

    Network network = load_network(*opened).value();
    Moments moments;
    OptimisePass pass;
    pass.precision = bf16 ? OptimisePass::Precision::kBf16 : OptimisePass::Precision::kF32;
    std::uint64_t step = 0;
    at::AutoGradMode grad(true);
    const double took = shortest(
        [&] {
          testing::text_step(network, moments, nullptr, stream, pass, 1, step, 100000, kWindow, kWindows);
          ++step;
        },
        seconds);
    std::printf(
        "%s: products alone %.1f ms (%.0f GFLOP/s), step %.1f ms (%.0f GFLOP/s, %.0f tokens/s): %.0f %%\n",
        bf16 ? "BF16" : "F32", products.seconds * 1e3, products.flops / products.seconds / 1e9, took * 1e3,
        products.flops / took / 1e9, kTokens / took, 100 * products.seconds / took);
  }
}
