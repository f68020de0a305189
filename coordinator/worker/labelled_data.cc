#include "coordinator/worker/labelled_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <unordered_map>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/labelled_tensors.h"
#include "coordinator/worker/data.h"

namespace retort {
namespace {

/// Each line's object, until `visit` answers false.
Result<void> visit_lines(
    const std::filesystem::path& file,
    const std::function<Result<bool>(const json::object&, const std::string& place)>& visit) {
  const MappedFile mapped = RETORT_TRY(MappedFile::open(file));
  std::string_view rest(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  for (std::uint64_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", file.string(), number);
    const json::value value = RETORT_TRY(parse_json(line, place));
    if (!RETORT_TRY(visit(*RETORT_TRY(as_object(value, place)), place))) break;
  }
  return {};
}

TensorShape shape_of(const ClassifierConfig& config) {
  if (config.family == ClassifierFamily::kMlp) return {{config.input.channels}, config.feature_names};
  return {{config.input.channels, config.input.height, config.input.width}, {}};
}

}  // namespace

Result<std::vector<std::string>> labels_in(const DataFile& file) {
  std::vector<std::string> out;
  if (!file.labels.empty()) {
    const MappedFile mapped = RETORT_TRY(MappedFile::open(file.labels));
    unsigned most = 0;
    for (std::size_t i = 8; i < mapped.bytes().size(); ++i)
      most = std::max(most, std::to_integer<unsigned>(mapped.bytes()[i]));
    for (unsigned i = 0; i <= most; ++i) out.push_back(std::to_string(i));
  } else {
    std::set<std::string> found;
    RETORT_TRY(
        visit_lines(file.file, [&](const json::object& line, const std::string& place) -> Result<bool> {
          found.insert(RETORT_TRY(json_string(line, "label", place)));
          return true;
        }));
    out.assign(found.begin(), found.end());
  }
  if (out.empty()) return fail(ErrorCode::kInvalid, file.file.string(), "there is no example in it");
  if (out.size() < 2)
    return fail(ErrorCode::kInvalid, file.file.string(),
                "all its examples have the label '{}': there is nothing to tell apart", out[0]);
  return out;
}

Result<std::uint32_t> values_in(const DataFile& file) {
  if (!file.labels.empty())
    return fail(ErrorCode::kInvalid, file.file.string(),
                "images need 'input' in the recipe's init: [values]");
  std::uint32_t values = 0;
  RETORT_TRY(visit_lines(file.file, [&](const json::object& line, const std::string& place) -> Result<bool> {
    const json::value* input = line.if_contains("input");
    if (input != nullptr && input->is_array())
      values = static_cast<std::uint32_t>(input->get_array().size());
    else if (input != nullptr && input->is_object())
      values = static_cast<std::uint32_t>(input->get_object().size());
    else
      return fail(ErrorCode::kInvalid, place, "'input' is missing or no list of numbers");
    return false;
  }));
  return values;
}

Result<Examples> Examples::tensors(const DataFile& file, const ClassifierConfig& config) {
  Examples out;
  std::vector<float> values;
  RETORT_TRY(visit_labelled_tensors(file.file, file.labels, shape_of(config), config.labels,
                                    [&](std::span<const float> input, std::size_t label) {
                                      values.insert(values.end(), input.begin(), input.end());
                                      out.labels_.push_back(static_cast<std::int64_t>(label));
                                      return file.limit_documents == 0 ||
                                             out.labels_.size() < file.limit_documents;
                                    }));
  out.inputs_ = at::empty(
      {static_cast<std::int64_t>(out.labels_.size()), static_cast<std::int64_t>(config.input.values())},
      at::kFloat);
  std::copy(values.begin(), values.end(), out.inputs_.data_ptr<float>());
  return out;
}

Result<Examples> Examples::texts(const DataFile& file, const Tokenizer& tokenizer, std::uint32_t context,
                                 const std::vector<std::string>& labels) {
  std::unordered_map<std::string, std::int64_t> places;
  for (std::size_t i = 0; i < labels.size(); ++i) places.emplace(labels[i], static_cast<std::int64_t>(i));
  Examples out;
  RETORT_TRY(visit_lines(file.file, [&](const json::object& line, const std::string& place) -> Result<bool> {
    const std::string label = RETORT_TRY(json_string(line, "label", place));
    const auto found = places.find(label);
    if (found == places.end())
      return fail(ErrorCode::kInvalid, place, "label '{}' is none of the model's {}", label, labels.size());
    std::vector<TokenId> ids = tokenizer.encode(RETORT_TRY(json_string(line, "text", place)), true);
    if (ids.empty()) return fail(ErrorCode::kInvalid, place, "the text has no tokens");
    if (ids.size() > context) {
      ids[context - 1] = ids.back();
      ids.resize(context);
    }
    out.texts_.push_back(std::move(ids));
    out.labels_.push_back(found->second);
    return file.limit_documents == 0 || out.labels_.size() < file.limit_documents;
  }));
  if (out.labels_.empty()) return fail(ErrorCode::kInvalid, file.file.string(), "holds no example");
  return out;
}

ExampleBatch Examples::batch(const std::vector<std::uint64_t>& which) const {
  ExampleBatch out;
  const auto count = static_cast<std::int64_t>(which.size());
  out.labels = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i)
    out.labels.data_ptr<std::int64_t>()[i] = labels_[which[static_cast<std::size_t>(i)]];
  if (texts_.empty()) {
    const std::vector<std::int64_t> rows(which.begin(), which.end());
    out.inputs = inputs_.index_select(0, at::tensor(rows, at::kLong));
    return out;
  }
  std::size_t longest = 0;
  for (const std::uint64_t i : which) longest = std::max(longest, texts_[i].size());
  out.inputs = at::zeros({count, static_cast<std::int64_t>(longest)}, at::kLong);
  out.tokens = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::vector<TokenId>& ids = texts_[which[static_cast<std::size_t>(i)]];
    std::copy(ids.begin(), ids.end(),
              out.inputs.data_ptr<std::int64_t>() + i * static_cast<std::int64_t>(longest));
    out.tokens.data_ptr<std::int64_t>()[i] = static_cast<std::int64_t>(ids.size());
  }
  return out;
}

ExampleBatch Examples::draw(std::uint64_t seed, std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> which;
  for (std::uint64_t index = first; index < first + count; ++index) {
    const std::uint64_t epoch = index / size();
    if (epoch != epoch_ || seed != seed_ || order_.empty()) {
      order_ = shuffled(size(), seed, epoch);
      epoch_ = epoch, seed_ = seed;
    }
    which.push_back(order_[index % size()]);
  }
  return batch(which);
}

ExampleBatch Examples::in_order(std::uint64_t first, std::uint64_t count) const {
  std::vector<std::uint64_t> which(std::min(count, size() - first));
  std::iota(which.begin(), which.end(), first);
  return batch(which);
}

std::vector<std::size_t> Examples::labels_without_example(std::size_t labels) const {
  std::vector<bool> seen(labels);
  for (const std::int64_t label : labels_) seen[static_cast<std::size_t>(label)] = true;
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < labels; ++i)
    if (!seen[i]) out.push_back(i);
  return out;
}

std::pair<double, double> Examples::guessed_by_frequency(const Examples& known, std::size_t labels) const {
  std::vector<double> counts(labels, 1);  // each might come
  for (const std::int64_t label : known.labels_) ++counts[static_cast<std::size_t>(label)];
  const auto commonest = std::max_element(counts.begin(), counts.end()) - counts.begin();
  const double all = static_cast<double>(known.size() + labels), mine = static_cast<double>(size());
  double sum = 0, right = 0;
  for (const std::int64_t label : labels_) {
    sum -= std::log(counts[static_cast<std::size_t>(label)] / all);
    right += label == commonest ? 1 : 0;
  }
  return {sum / mine, right / mine};
}

void Examples::normalize(ClassifierConfig& config, bool each) const {
  const at::Tensor channels =
      inputs_.view({static_cast<std::int64_t>(size()), config.input.channels, -1}).to(at::kDouble);
  const at::Tensor mean = each ? channels.mean(at::IntArrayRef({0, 2})) : channels.mean().view({1}),
                   deviation = each ? channels.std(at::IntArrayRef({0, 2}), /*unbiased=*/false)
                                    : channels.std(/*unbiased=*/false).view({1});
  config.mean.clear(), config.std.clear();
  for (std::int64_t i = 0; i < config.input.channels; ++i) {
    const std::int64_t at = each ? i : 0;
    config.mean.push_back(mean[at].item<float>());
    const float spread = deviation[at].item<float>();
    config.std.push_back(spread > 0 ? spread : 1);  // a feature that never changes
  }
}

}  // namespace retort
