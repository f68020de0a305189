#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <map>
#include <new>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#include "agent/serve/runtime/sampler.h"
#include "agent/serve/runtime/session.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/hf/hf_model.h"
#include "tests/support/plain_llama.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/serve_runtime/allocations.h"

// Counts allocations; GCC cannot see that new and delete are replaced together.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
std::atomic<std::size_t> allocations{0};
void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace retort {
namespace {

using testing::TemporaryFolder;

TEST(Sampler, GreedyTopKTopPAndSeed) {
  const std::vector<float> logits{1, 3, 2, 3};
  EXPECT_EQ(Sampler({}, 4).sample(logits, {}), 1);  // a tie goes to the lowest id
  std::map<TokenId, int> seen;
  Sampler hot({.temperature = 1.0f, .seed = 5}, 4);
  for (int i = 0; i < 4000; ++i) ++seen[hot.sample(logits, {})];
  const double z = std::exp(-2.0) + 2 + std::exp(-1.0);
  EXPECT_NEAR(seen[0] / 4000.0, std::exp(-2.0) / z, 0.02);
  EXPECT_NEAR(seen[1] / 4000.0, 1 / z, 0.03);
  Sampler cold({.temperature = 1e-39f, .seed = 5}, 4);  // its inverse is no number
  for (int i = 0; i < 100; ++i) EXPECT_EQ(cold.sample(logits, {}), 1);
  Sampler narrow({.temperature = 1.0f, .top_k = 2, .seed = 5}, 4);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(narrow.sample(logits, {}) % 2, 1);
  Sampler nucleus({.temperature = 1.0f, .top_p = 0.3f, .seed = 5}, 4);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(nucleus.sample(logits, {}), 1);
  Sampler a({.temperature = 1.0f, .seed = 9}, 4), b({.temperature = 1.0f, .seed = 9}, 4);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(a.sample(logits, {}), b.sample(logits, {}));
  const std::vector<TokenId> recent{1, 1, 3};
  EXPECT_EQ(Sampler({.repetition_penalty = 2.0f}, 4).sample(logits, recent), 2);
}

TEST(Sampler, PresenceAndFrequencyCountWhatItReturned) {
  const std::vector<float> logits{1.0f, 1.5f, 0.2f};
  Sampler presence({.presence_penalty = 0.6f}, 3), frequency({.frequency_penalty = 0.4f}, 3), none({}, 3);
  std::vector<TokenId> once, often;
  for (int i = 0; i < 5; ++i) {
    once.push_back(presence.sample(logits, {}));
    often.push_back(frequency.sample(logits, {}));
    EXPECT_EQ(none.sample(logits, {}), 1);
  }
  EXPECT_EQ(once, (std::vector<TokenId>{1, 0, 1, 1, 1}));   // 0.9 against 1, then 0.9 against 0.4
  EXPECT_EQ(often, (std::vector<TokenId>{1, 1, 0, 1, 0}));  // 1.5 1.1 | 0.7 … each time 0.4 less
}

/// The cuts as they are defined: everything put in order, then cut, then drawn.
TEST(Sampler, CutsOfALargeVocabularyAreThoseOfTheDefinition) {
  SeededRandom random(7);
  std::vector<float> logits(2000);
  for (float& x : logits) x = static_cast<float>(8 * (random.next_unit() - 0.5) + 6 * random.next_unit());
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 0.7f, .top_p = 0.9f},
        SamplingOptions{.temperature = 1.3f, .top_k = 700},
        SamplingOptions{.temperature = 1.0f, .top_k = 40, .top_p = 0.5f},
        SamplingOptions{.temperature = 2.0f, .min_p = 0.05f},
        SamplingOptions{.temperature = 0.9f, .top_p = 0.999f, .min_p = 0.01f},
        SamplingOptions{.temperature = 1.0f}}) {
    std::vector<double> share;
    for (const int i : order) share.push_back(std::exp((logits[i] - logits[order[0]]) / options.temperature));
    if (options.top_k != 0) share.resize(options.top_k);
    double sum = std::accumulate(share.begin(), share.end(), 0.0), kept = 0;
    std::size_t end = 0;
    while (end < share.size() && (end == 0 || (kept < options.top_p * sum && share[end] >= options.min_p)))
      kept += share[end++];
    Sampler sampler(options, 2000);
    std::map<TokenId, int> seen;
    constexpr int kDraws = 1000;
    for (int i = 0; i < kDraws; ++i) ++seen[sampler.sample(logits, {})];
    double first_ten = 0;
    int drawn = 0;
    for (std::size_t rank = 0; rank < logits.size(); ++rank) {
      const auto found = seen.find(order[rank]);
      if (found == seen.end()) continue;
      EXPECT_LT(rank, end + 1) << "was cut";  // a rounding of the sum may move the cut by one
      if (rank < 10) drawn += found->second;
    }
    for (std::size_t rank = 0; rank < std::min<std::size_t>(10, end); ++rank) first_ten += share[rank] / kept;
    EXPECT_NEAR(drawn / double{kDraws}, first_ten,
                4 * std::sqrt(first_ten * (1 - first_ten) / kDraws) + 1e-9);
  }
}

TEST(ThreadTeam, EveryChunkIsDoneOnceWhoeverDoesIt) {
  for (const std::uint32_t size : {1u, 2u, 4u}) {
    ThreadTeam team(size);
    ASSERT_EQ(team.size(), size);
    for (std::uint32_t job = 0; job < 500; ++job) {
      const std::uint32_t chunks = 1 + job % 40;
      std::vector<std::atomic<int>> done(chunks);
      std::vector<std::atomic<int>> inside(size);
      team.run(chunks, [&](std::uint32_t member, std::uint32_t chunk) {
        ASSERT_LT(member, size);
        ASSERT_EQ(++inside[member], 1) << "a member is at two chunks at once";
        ++done[chunk];
        --inside[member];
      });
      for (const auto& count : done) ASSERT_EQ(count, 1);
    }
  }
}

std::shared_ptr<const Model> tiny(const TemporaryFolder& folder, ModelFamily family, TensorType type) {
  EXPECT_OK(testing::write_tiny_gguf(folder / "m", folder / "m.gguf", family, 3, type));
  auto model = Model::open(folder / "m.gguf");
  EXPECT_OK(model);
  return *model;
}

TEST(Session, ChunksThreadsAndRewindGiveTheSameLogits) {
  using kernels::CacheType;
  const std::pair<TensorType, CacheType> kinds[] = {{TensorType::kF32, CacheType::kF32},
                                                    {TensorType::kF16, CacheType::kQ8},
                                                    {TensorType::kQ8_0, CacheType::kF32},
                                                    {TensorType::kQ8_0, CacheType::kF16},
                                                    {TensorType::kQ4_0, CacheType::kQ8}};
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2})
    for (const auto& [type, cache] : kinds) {
      TemporaryFolder folder;
      const auto model = tiny(folder, family, type);
      const auto ids =
          model->tokenizer().encode("the server reads mail and the client writes it to the log", true);
      ThreadTeam one(1), two(2);
      auto single = Session::create(model, one, {.batch = 1, .cache = cache});
      auto chunked = Session::create(model, two, {.batch = 7, .cache = cache});
      ASSERT_OK(single);
      ASSERT_OK(chunked);
      const auto a = (*single)->evaluate(ids);
      const auto b = (*chunked)->evaluate(ids);
      ASSERT_OK(a);
      ASSERT_OK(b);
      for (std::size_t i = 0; i < a->size(); ++i) ASSERT_EQ((*a)[i], (*b)[i]);
      const std::vector<float> first(a->begin(), a->end());
      (*single)->rewind(3);
      ASSERT_OK((*single)->evaluate(std::span(ids).subspan(3)));
      EXPECT_EQ(std::vector<float>(a->begin(), a->end()), first);
    }
}

TEST(Session, NarrowCachesTakeLessAndChangeLittle) {
  TemporaryFolder folder;
  const auto model = tiny(folder, ModelFamily::kLlama, TensorType::kF32);
  const auto ids =
      model->tokenizer().encode("the server reads mail and the client writes it to the log", true);
  ThreadTeam team(1);
  std::vector<std::vector<float>> logits;
  std::vector<std::uint64_t> bytes;
  for (const auto cache : {kernels::CacheType::kF32, kernels::CacheType::kF16, kernels::CacheType::kQ8}) {
    bytes.push_back(plan_memory(*model, {.cache = cache}, 1).kv_cache_bytes);
    auto session = Session::create(model, team, {.cache = cache});
    ASSERT_OK(session);
    const auto last = (*session)->evaluate(ids);
    ASSERT_OK(last);
    logits.emplace_back(last->begin(), last->end());
  }
  EXPECT_EQ(bytes[1] * 2, bytes[0]);
  EXPECT_LT(bytes[2] * 2, bytes[0]);
  float top = 0;
  for (const float x : logits[0]) top = std::max(top, std::fabs(x));
  for (std::size_t i = 0; i < logits[0].size(); ++i) {
    EXPECT_NEAR(logits[1][i], logits[0][i], 1e-3f * top);
    EXPECT_NEAR(logits[2][i], logits[0][i], 2e-2f * top);
  }
  EXPECT_NE(logits[2], logits[0]);
}

TEST(Session, LlamaVariantsGiveThePlainForwardPass) {
  for (const auto& [name, change] : testing::llama_variants()) {
    TemporaryFolder folder;
    testing::TinyModelOptions options;
    options.change = change;
    ASSERT_OK(testing::write_tiny_gguf(folder / "m", folder / "m.gguf", ModelFamily::kLlama, 1,
                                       TensorType::kF32, options));
    std::vector<TokenId> ids;
    for (int i = 0; i < 100; ++i) ids.push_back((i * 37 + 11) % 300);
    const auto expected = testing::plain_llama(folder / "m", ids);
    ASSERT_OK(expected);
    for (const bool pack : {false, true}) {
      const auto model = Model::open(folder / "m.gguf", {.pack = pack});
      ASSERT_OK(model);
      ThreadTeam team(1);
      const auto session = Session::create(
          *model, team, {.batch = 100, .cache = kernels::CacheType::kF32, .logits_of_all = true});
      ASSERT_OK(session);
      const auto logits = (*session)->evaluate_all(ids);
      ASSERT_OK(logits);
      ASSERT_EQ(logits->size(), expected->size());
      double worst = 0, largest = 0;
      for (std::size_t i = 0; i < expected->size(); ++i) {
        worst = std::max(worst, std::abs((*logits)[i] - (*expected)[i]));
        largest = std::max(largest, std::abs((*expected)[i]));
      }
      EXPECT_LT(worst, 1e-4 * largest) << name << (pack ? ", packed" : "");
    }
  }
}

/// Batches large enough that each thread takes tokens of its own (share_tokens).
TEST(Session, ThreadsThatTakeTokensOfTheirOwnChangeNoBit) {
  auto variants = testing::llama_variants();
  variants.emplace_back("layers that differ", [](ModelConfig& c) { c.layers[1] = {2, 1, 32}; });
  for (const auto& [name, change] : variants)
    for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0}) {
      TemporaryFolder folder;
      testing::TinyModelOptions options;
      options.change = change;
      ASSERT_OK(
          testing::write_tiny_gguf(folder / "m", folder / "m.gguf", ModelFamily::kLlama, 1, type, options));
      const auto model = Model::open(folder / "m.gguf");
      ASSERT_OK(model);
      std::vector<TokenId> ids;
      for (int i = 0; i < 100; ++i) ids.push_back((i * 37 + 11) % 300);
      // Of one stream, and of three whose runs of four tokens end at odd places.
      ThreadTeam one(1), three(3);
      const auto last_of = [&](ThreadTeam& team, std::uint32_t batch, std::span<const TokenId> text) {
        const auto session = Session::create(*model, team, {.batch = batch});
        EXPECT_OK(session);
        const auto logits = (*session)->evaluate(text);
        EXPECT_OK(logits);
        return std::vector<float>(logits->begin(), logits->end());
      };
      const std::span<const TokenId> all(ids), parts[] = {all.first(61), all.subspan(61, 37), all.last(2)};
      EXPECT_EQ(last_of(three, 100, all), last_of(one, 1, all)) << name;
      const auto session = Session::create(*model, three, {.streams = 3, .batch = 100});
      ASSERT_OK(session);
      const Session::Chunk chunks[] = {{0, parts[0], true}, {1, parts[1], true}, {2, parts[2], true}};
      const auto logits = (*session)->step(chunks);
      ASSERT_OK(logits);
      std::vector<float> expected;
      for (const auto part : parts) {
        const auto row = last_of(one, 1, part);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      EXPECT_EQ(std::vector<float>(logits->begin(), logits->end()), expected) << name;
    }
}

TEST(Session, StreamsComputedTogetherGiveWhatEachGivesAlone) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    TemporaryFolder folder;
    const auto model = tiny(folder, family, TensorType::kQ8_0);
    const std::size_t n_vocab = model->config().n_vocab;
    ThreadTeam team(2);
    auto together = Session::create(model, team, {.streams = 3, .batch = 16});
    ASSERT_OK(together);
    std::vector<std::vector<TokenId>> texts;
    std::vector<std::vector<float>> alone;
    for (const char* text : {"the server reads mail", "a client", "it writes the log and the mail again"}) {
      texts.push_back(model->tokenizer().encode(text, true));
      auto session = Session::create(model, team, {});
      ASSERT_OK(session);
      const auto logits = (*session)->evaluate(texts.back());
      ASSERT_OK(logits);
      alone.emplace_back(logits->begin(), logits->end());
    }
    // A few tokens of each at a time, as a server does; logits only where a text ends.
    std::size_t done[3] = {};
    std::vector<std::vector<float>> got(3);
    while (done[0] < texts[0].size() || done[1] < texts[1].size() || done[2] < texts[2].size()) {
      std::vector<Session::Chunk> chunks;
      for (std::uint32_t i = 3; i-- > 0;) {
        const std::size_t n = std::min<std::size_t>(1 + 2 * i, texts[i].size() - done[i]);
        if (n == 0) continue;
        done[i] += n;
        chunks.push_back({i, std::span(texts[i]).subspan(done[i] - n, n), done[i] == texts[i].size()});
      }
      const auto logits = (*together)->step(chunks);
      ASSERT_OK(logits);
      std::size_t row = 0;
      for (const Session::Chunk& chunk : chunks)
        if (chunk.wants_logits) {
          const auto mine = logits->subspan(row++ * n_vocab, n_vocab);
          got[chunk.stream].assign(mine.begin(), mine.end());
        }
      ASSERT_EQ(logits->size(), row * n_vocab);
    }
    EXPECT_EQ(got, alone);
    // A stream that begins as another did.
    (*together)->copy(0, 1, static_cast<std::uint32_t>(texts[0].size() - 1));
    const Session::Chunk last{1, std::span(texts[0]).last(1)};
    const auto again = (*together)->step({&last, 1});
    ASSERT_OK(again);
    EXPECT_EQ(std::vector<float>(again->begin(), again->end()), alone[0]);
    const Session::Chunk twice[] = {last, last}, nowhere{3, last.tokens};
    EXPECT_FALSE((*together)->step(twice));
    EXPECT_FALSE((*together)->step({&nowhere, 1}));
    EXPECT_FALSE((*together)->step({}));
  }
}

std::vector<float> last_logits(const std::filesystem::path& file, const ModelOptions& options, bool shared) {
  const auto model = Model::open(file, options);
  EXPECT_OK(model);
  EXPECT_EQ((*model)->packed_is_shared(), shared);
  ThreadTeam team(1);
  auto session = Session::create(*model, team, {});
  EXPECT_OK(session);
  const auto logits = (*session)->evaluate((*model)->tokenizer().encode("the server reads", true));
  EXPECT_OK(logits);
  return {logits->begin(), logits->end()};
}

TEST(PackedWeights, AreKeptMappedAndNeverMistaken) {
  TemporaryFolder folder;
  (void)tiny(folder, ModelFamily::kLlama, TensorType::kF32);
  const auto file = folder / "m.gguf", cache = folder / "cache";
  const auto expected = last_logits(file, {}, false);
  ASSERT_EQ(last_logits(file, {.pack_cache = cache}, true), expected);
  const auto entry = std::filesystem::directory_iterator(cache)->path();
  const auto written = std::filesystem::last_write_time(entry);
  EXPECT_EQ(last_logits(file, {.pack_cache = cache}, true), expected);
  EXPECT_EQ(std::filesystem::last_write_time(entry), written) << "packed again";

  std::string damaged = *read_file(entry);  // a bit of the last weight
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  ASSERT_OK(write_file_atomic(entry, damaged));
  EXPECT_EQ(last_logits(file, {.pack_cache = cache}, true), expected);
  EXPECT_NE(*read_file(entry), damaged) << "mended";

  std::filesystem::resize_file(entry, std::filesystem::file_size(entry) - 1);  // torn
  EXPECT_EQ(last_logits(file, {.pack_cache = cache}, true), expected);
  ASSERT_OK(write_file_atomic(entry, std::string(std::filesystem::file_size(entry), 'x')));  // something else
  EXPECT_EQ(last_logits(file, {.pack_cache = cache}, true), expected);

  // Another model of the same size and name.
  ASSERT_OK(testing::write_tiny_gguf(folder / "m", file, ModelFamily::kLlama, 4, TensorType::kF32));
  const auto other = last_logits(file, {.pack_cache = cache}, true);
  EXPECT_NE(other, expected);
  EXPECT_EQ(other, last_logits(file, {}, false));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(cache), {}), 1) << "the old packing stays";

  // What was packed from a model that is gone goes when another is packed.
  std::filesystem::rename(file, folder / "moved.gguf");
  EXPECT_EQ(last_logits(folder / "moved.gguf", {.pack_cache = cache}, true), other);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(cache), {}), 1);
  std::filesystem::rename(folder / "moved.gguf", file);

  // Nowhere to keep it, no packing, and not enough memory for it.
  ASSERT_OK(write_file_atomic(folder / "file", ""));
  EXPECT_EQ(last_logits(file, {.pack_cache = folder / "file"}, false), other);
  const auto plain = last_logits(file, {.pack = false}, false);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(plain[i], other[i], 1e-4);
  EXPECT_EQ(last_logits(file, {.pack_if = [](const Model&, std::uint64_t) { return false; }}, false), plain);
}

TEST(PackedWeights, ThoseWhoPackAtTheSameTimeShareOneFile) {
  TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "model", "a model's file"));
  constexpr std::size_t kMakers = 4;
  std::barrier together(kMakers);
  std::vector<PackedWeights> made(kMakers);
  std::vector<std::thread> makers;
  for (PackedWeights& one : made)
    makers.emplace_back([&] {
      auto packed = PackedWeights::make(1 << 20, folder / "model", folder / "cache",
                                        [&](std::byte* data) -> Result<void> {
                                          std::memset(data, 7, 1 << 20);
                                          together.arrive_and_wait();  // nobody finds the others' file before
                                          return {};
                                        });
      if (packed) one = std::move(*packed);
    });
  for (std::thread& maker : makers) maker.join();
  for (const PackedWeights& one : made) {
    EXPECT_TRUE(one.shared());
    EXPECT_EQ(one.data()[12345], std::byte{7});
  }
  const auto maps = read_file("/proc/self/maps", 16u << 20);
  ASSERT_OK(maps);
  std::set<std::string> files;  // inodes
  std::istringstream lines(*maps);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);  // address, rights, offset, device, inode, path
    std::string inode, path;
    for (int i = 0; i < 5; ++i) fields >> inode;
    if (fields >> path && path.starts_with((folder / "cache").string())) files.insert(inode);
  }
  EXPECT_EQ(files.size(), 1u) << *maps;

  // A pipe of the file's name is no file, and nobody waits for its writer.
  made.clear();
  const auto entry = std::filesystem::directory_iterator(folder / "cache")->path();
  std::filesystem::remove(entry);
  ASSERT_EQ(::mkfifo(entry.c_str(), 0600), 0);
  const auto again =
      PackedWeights::make(1 << 20, folder / "model", folder / "cache", [](std::byte* data) -> Result<void> {
        std::memset(data, 8, 1 << 20);
        return {};
      });
  ASSERT_OK(again);
  EXPECT_TRUE(again->shared());
  EXPECT_EQ(again->data()[0], std::byte{8});

  // What could not be packed is not kept.
  std::filesystem::remove(entry);
  EXPECT_FALSE(PackedWeights::make(
      1 << 20, folder / "model", folder / "cache",
      [](std::byte*) -> Result<void> { return fail(ErrorCode::kCorrupt, "", "broken"); }));
  EXPECT_FALSE(std::filesystem::exists(entry));
}

TEST(Session, NothingIsAllocatedAfterCreation) {
  TemporaryFolder folder;
  const auto model = tiny(folder, ModelFamily::kLlama, TensorType::kQ8_0);
  ThreadTeam team(2);
  auto session = Session::create(model, team, {});
  ASSERT_OK(session);
  Sampler sampler({.temperature = 0.8f, .top_k = 20, .seed = 1}, model->config().n_vocab);
  const std::vector<TokenId> prompt{0, 5, 9};
  auto logits = (*session)->evaluate(prompt);
  const std::size_t before = allocations;
  for (int i = 0; i < 50; ++i) {
    const TokenId next = sampler.sample(*logits, {});
    logits = (*session)->evaluate(std::span(&next, 1));
  }
  EXPECT_EQ(allocations - before, 0u);
}

TEST(Session, FormatsOfOurOwnAreServed) {
  TemporaryFolder folder;
  (void)tiny(folder, ModelFamily::kLlama, TensorType::kF32);
  const auto exact = last_logits(folder / "m.gguf", {}, false);
  for (const auto& [type, most] :
       {std::pair{TensorType::kSparseQ8, 0.1}, std::pair{TensorType::kCodebook8, 0.1},
        std::pair{TensorType::kCodebook4, 1.0}, std::pair{TensorType::kSparse24Q8, 5.0}}) {
    (void)tiny(folder, ModelFamily::kLlama, type);
    EXPECT_EQ(GgufFile::open(folder / "m.gguf")->tensor("blk.0.attn_q.weight")->type, type);
    const auto packed = last_logits(folder / "m.gguf", {}, false),
               plain = last_logits(folder / "m.gguf", {.pack = false}, false);
    for (std::size_t i = 0; i < packed.size(); ++i) {
      ASSERT_NEAR(packed[i], plain[i], 1e-3) << info(type).name;
      ASSERT_NEAR(packed[i], exact[i], most) << info(type).name;
    }
  }
}

TEST(Session, CalibratedInputScalesThatAreFineEnoughChangeLittle) {
  TemporaryFolder folder;
  (void)tiny(folder, ModelFamily::kLlama, TensorType::kQ8_0);
  const auto dynamic = last_logits(folder / "m.gguf", {}, false);
  const auto hf = open_hf_model(folder / "m");
  ASSERT_OK(hf);
  const auto with = [&](double scale, std::initializer_list<const char*> tensors) {
    GgufMetadata extra;
    for (const char* tensor : tensors)
      extra.emplace_back(std::string("retort.input_scale.blk.0.") + tensor, scale);
    EXPECT_OK(write_gguf_model(folder / "s.gguf", hf->config, hf->tokenizer, weight_sources(*hf),
                               TensorType::kQ8_0, extra));
    return folder / "s.gguf";
  };
  const auto distance = [&](const std::vector<float>& a) {
    double most = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
      most = std::max(most, std::fabs(static_cast<double>(a[i]) - static_cast<double>(dynamic[i])));
    return most;
  };
  const auto all = {"attn_q.weight",   "attn_k.weight", "attn_v.weight",  "attn_output.weight",
                    "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"};
  const auto fine = last_logits(with(0.03, all), {}, false);  // normalized values reach 3.8
  EXPECT_NE(fine, dynamic);
  EXPECT_LT(distance(fine), 0.1);
  EXPECT_GT(distance(last_logits(with(1.0, all), {}, false)), distance(fine));
  // Q, K and V read one input.
  EXPECT_EQ(Model::open(with(0.03, {"attn_q.weight"})).error().code, ErrorCode::kInvalid);
}

TEST(Session, LimitsAreRefusedWithNumbers) {
  TemporaryFolder folder;
  const auto model = tiny(folder, ModelFamily::kLlama, TensorType::kF32);
  ThreadTeam team(1);
  const auto refused = Session::create(model, team, {.memory_limit = 1000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(refused.error().message.find("the limit is 1000 B"), std::string::npos)
      << refused.error().message;
  EXPECT_FALSE(Session::create(model, team, {.n_ctx = 4096}));
  auto session = Session::create(model, team, {.n_ctx = 8});
  ASSERT_OK(session);
  EXPECT_FALSE((*session)->evaluate({}));
  EXPECT_FALSE((*session)->evaluate(std::vector<TokenId>{-1}));
  EXPECT_FALSE((*session)->evaluate(std::vector<TokenId>{300}));
  EXPECT_FALSE((*session)->evaluate(std::vector<TokenId>(9, 1)));
  EXPECT_OK((*session)->evaluate(std::vector<TokenId>(8, 1)));
  EXPECT_FALSE((*session)->evaluate(std::vector<TokenId>{1}));
}

void check_golden(const std::filesystem::path& folder) {
  TemporaryFolder temporary;
  const auto hf = open_hf_model(folder);
  ASSERT_OK(hf);
  ASSERT_OK(write_gguf_model(temporary / "m.gguf", hf->config, hf->tokenizer, weight_sources(*hf),
                             TensorType::kF32, {}));
  const auto model = Model::open(temporary / "m.gguf");
  ASSERT_OK(model);
  const auto golden = parse_json(*read_file(folder / "golden.json"), "golden.json");
  ThreadTeam team(2);
  for (const json::value& entry : golden->as_array()) {
    auto session = Session::create(*model, team, {});
    ASSERT_OK(session);
    const auto prompt = (*model)->tokenizer().encode(std::string(entry.at("prompt").as_string()), true);
    auto logits = (*session)->evaluate(prompt);
    ASSERT_OK(logits);
    for (const json::value& pair : entry.at("last_logits_top8").as_array())
      EXPECT_NEAR((*logits)[pair.as_array()[0].as_int64()], pair.as_array()[1].to_number<double>(), 1e-3);
    for (const json::value& expected : entry.at("greedy_ids").as_array()) {
      const TokenId next = Sampler({}, 1).sample(*logits, {});
      ASSERT_EQ(next, expected.as_int64());
      logits = (*session)->evaluate(std::span(&next, 1));
      ASSERT_OK(logits);
    }
  }
}

TEST(Golden, Stories) {
  RETORT_NEED_ASSET(folder, "teachers/stories-260k");
  check_golden(folder);
}
TEST(Golden, Babyllama) {
  RETORT_NEED_ASSET(folder, "teachers/babyllama-936k");
  check_golden(folder);
}

TEST(Golden, Gpt2SortsAll729Inputs) {
  RETORT_NEED_ASSET(folder, "teachers/gpt2-sort-85k");
  TemporaryFolder temporary;
  const auto hf = open_hf_model(folder);
  ASSERT_OK(hf);
  ASSERT_OK(write_gguf_model(temporary / "m.gguf", hf->config, hf->tokenizer, weight_sources(*hf),
                             TensorType::kF32, {}));
  const auto model = Model::open(temporary / "m.gguf");
  ASSERT_OK(model);
  ThreadTeam team(1);
  auto session = Session::create(*model, team, {});
  ASSERT_OK(session);
  for (int input = 0; input < 729; ++input) {
    std::vector<TokenId> ids;
    for (int i = 0, rest = input; i < 6; ++i, rest /= 3) ids.push_back(rest % 3);
    (*session)->rewind(0);
    auto logits = (*session)->evaluate(ids);
    ASSERT_OK(logits);
    if (ids == std::vector<TokenId>{2, 0, 1, 1, 0, 2}) {
      const float expected[] = {8.41396f, -3.80499f, -3.13255f};
      for (int i = 0; i < 3; ++i) EXPECT_NEAR((*logits)[i], expected[i], 1e-3);
    }
    std::vector<TokenId> sorted;
    for (int i = 0; i < 6; ++i) {
      sorted.push_back(Sampler({}, 3).sample(*logits, {}));
      if (i < 5) logits = (*session)->evaluate(std::span(&sorted.back(), 1));
    }
    std::sort(ids.begin(), ids.end());
    ASSERT_EQ(sorted, ids) << input;
  }
}

}  // namespace
}  // namespace retort
