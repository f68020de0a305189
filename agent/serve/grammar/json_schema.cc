#include "agent/serve/grammar/json_schema.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

namespace retort::grammar {
namespace {

constexpr std::size_t kMaxNodes = 60'000;
constexpr std::uint64_t kMaxCount = 4096;                 // of items and characters
constexpr std::int64_t kMaxNumber = 999'999'999'999'999;  // 15 digits: exact as a double

/// Annotations: they say nothing about which texts fit. `format` is one unless a validator is told otherwise.
const std::set<std::string_view> kAnnotations{"title", "description", "default",    "examples", "$schema",
                                              "$id",   "$comment",    "deprecated", "readOnly", "writeOnly",
                                              "$defs", "definitions", "format"};
const std::set<std::string_view> kOfStrings{"minLength", "maxLength", "pattern"},
    kOfNumbers{"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    kOfObjects{"properties", "required", "additionalProperties"}, kOfArrays{"items", "minItems", "maxItems"};
constexpr std::string_view kTypes[] = {"object", "array", "string", "number", "integer", "boolean", "null"};

class SchemaCompiler {
 public:
  SchemaCompiler(const json::value& root, const SchemaOptions& options)
      : root_(root), options_(options), network_(std::make_shared<Network>()) {}

  Result<std::shared_ptr<const Network>> compile() {
    const RuleId start = RETORT_TRY(schema(root_, "#"));
    return finish(start);
  }
  Result<std::shared_ptr<const Network>> compile_any_object() { return finish(free_object()); }

 private:
  Result<std::shared_ptr<const Network>> finish(RuleId start) {
    if (Result<void> done = network_->finish(start, options_.max_depth); !done)
      return fail(ErrorCode::kInvalid, "schema", "{}", done.error().message);
    return std::shared_ptr<const Network>(network_);
  }
  static tl::unexpected<Error> refuse(ErrorCode code, std::string_view path, std::string_view keyword,
                                      std::string_view why) {
    return fail(code, "schema", "'{}' at {} {}", keyword, path, why);
  }
  static tl::unexpected<Error> unsupported(std::string_view path, std::string_view keyword,
                                           std::string_view why = "is not supported") {
    return refuse(ErrorCode::kUnsupported, path, keyword, why);
  }
  static tl::unexpected<Error> invalid(std::string_view path, std::string_view keyword,
                                       std::string_view why) {
    return refuse(ErrorCode::kInvalid, path, keyword, why);
  }

  NodeId node() { return network_->node(); }
  NodeId called(NodeId from, RuleId rule) {
    const NodeId to = node();
    network_->call(from, rule, to);
    return to;
  }

  // ---- JSON's own parts ----

  /// Nothing, a space, or a line end and up to 20 spaces.
  NodeId white_space(NodeId from) {
    if (!space_) {
      space_ = network_->rule(false);
      const auto [start, end, nests] = network_->rule_of(*space_);
      network_->bytes(start, ' ', ' ', end);
      NodeId at = network_->text(start, "\n");
      for (int i = 0; i < 20; ++i) {
        network_->skip(at, end);
        at = network_->text(at, " ");
      }
      network_->skip(at, end);
    }
    const NodeId to = called(from, *space_);
    network_->skip(from, to);
    return to;
  }

  /// One character between a string's quotes, in any spelling; no half of a surrogate pair.
  RuleId character() {
    if (character_) return *character_;
    character_ = network_->rule(false);
    const auto [start, end, nests] = network_->rule_of(*character_);
    for (const auto& [low, high] : {std::pair{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x7f}})
      network_->bytes(start, static_cast<std::uint8_t>(low), static_cast<std::uint8_t>(high), end);
    if (!options_.ascii)
      for (const auto& [low, high] : {std::pair{"\xc2\x80", "\xdf\xbf"},
                                      {"\xe0\xa0\x80", "\xed\x9f\xbf"},
                                      {"\xee\x80\x80", "\xef\xbf\xbf"},
                                      {"\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}})
        network_->between(start, end, low, high, 0x80, 0xbf);
    const NodeId escape = network_->text(start, "\\");
    for (const char c : std::string_view("\"\\/bfnrt")) network_->skip(network_->text(escape, {&c, 1}), end);
    const auto digits = [&](NodeId from, std::initializer_list<std::string_view> sets) {
      for (const std::string_view set : sets) {
        const NodeId to = node();
        for (std::size_t i = 0; i < set.size(); i += 2)
          network_->bytes(from, static_cast<std::uint8_t>(set[i]), static_cast<std::uint8_t>(set[i + 1]), to);
        from = to;
      }
      return from;
    };
    constexpr std::string_view kHex = "09afAF";
    const NodeId u = network_->text(escape, "u");
    network_->skip(digits(u, {"09acefACEF", kHex, kHex, kHex}), end);
    network_->skip(digits(u, {"ddDD", "07", kHex, kHex}), end);
    const NodeId pair = network_->text(digits(u, {"ddDD", "89abAB", kHex, kHex}), "\\u");
    network_->skip(digits(pair, {"ddDD", "cfCF", kHex, kHex}), end);
    return *character_;
  }

  NodeId any_string(NodeId from) {
    const NodeId inside = network_->text(from, "\"");
    network_->call(inside, character(), inside);
    return network_->text(inside, "\"");
  }

  /// A value exactly as we spell it.
  Result<std::string> spelled(const json::value& value, std::string_view path,
                              std::string_view keyword) const {
    if (value.is_double() && !std::isfinite(value.get_double()))
      return invalid(path, keyword, "is no number");
    const std::string text = json::serialize(value);
    if (!options_.ascii) return text;
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
      const auto first = static_cast<unsigned char>(text[i]);
      if (first < 0x80) {
        out += text[i++];
        continue;
      }
      const int length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
      std::uint32_t c = first & (0xffu >> (length + 1));
      for (int k = 1; k < length; ++k)
        c = c << 6 | (static_cast<unsigned char>(text[i + static_cast<std::size_t>(k)]) & 0x3f);
      i += static_cast<std::size_t>(length);
      if (c >= 0x10000)
        out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((c - 0x10000) >> 10),
                           0xdc00 + ((c - 0x10000) & 0x3ff));
      else
        out += fmt::format("\\u{:04x}", c);
    }
    return out;
  }

  NodeId digit_run(NodeId from, std::size_t least, std::size_t most) {
    const NodeId out = node();
    for (std::size_t i = 0; i <= most; ++i) {
      if (i >= least) network_->skip(from, out);
      if (i == most) break;
      const NodeId next = node();
      network_->bytes(from, '0', '9', next);
      from = next;
    }
    return out;
  }

  /// The whole numbers low…high, 0 ≤ low ≤ high.
  void magnitudes(NodeId from, NodeId to, std::int64_t low, std::int64_t high) {
    for (std::int64_t first = 1; first <= high; first *= 10) {  // numbers of one length
      const std::int64_t a = std::max(low, first == 1 ? 0 : first), b = std::min(high, 10 * first - 1);
      if (a <= b) network_->between(from, to, std::to_string(a), std::to_string(b), '0', '9');
      if (first > kMaxNumber) break;
    }
    if (high == 0) network_->bytes(from, '0', '0', to);
  }

  struct Bounds {
    std::int64_t low = -kMaxNumber, high = kMaxNumber;
    bool without_low = false, without_high = false;  ///< for fractions: not the bound itself
    bool given = false;
  };
  Result<Bounds> bounds(const json::object& s, std::string_view path, bool whole) const {
    Bounds out;
    for (const std::string_view key : kOfNumbers) {
      const json::value* value = s.if_contains(key);
      if (value == nullptr) continue;
      if (!value->is_number()) return invalid(path, key, "is not a number");
      const double x = value->to_number<double>();
      if (!(std::abs(x) <= static_cast<double>(kMaxNumber)))
        return unsupported(path, key, "has more than 15 digits, which is not supported");
      if (!whole && x != std::floor(x))
        return unsupported(path, key, "is not whole, which is supported for integers alone");
      out.given = true;
      const bool lower = key == "minimum" || key == "exclusiveMinimum", exclusive = key.starts_with("excl");
      std::int64_t bound = static_cast<std::int64_t>(lower ? std::ceil(x) : std::floor(x));
      bool without = exclusive;
      if (whole && exclusive && static_cast<double>(bound) == x) bound += lower ? 1 : -1;
      if (lower) {
        if (bound > out.low)
          out.low = bound, out.without_low = without;
        else if (bound == out.low)
          out.without_low |= without;
      } else {
        if (bound < out.high)
          out.high = bound, out.without_high = without;
        else if (bound == out.high)
          out.without_high |= without;
      }
    }
    return out;
  }

  Result<void> integer(NodeId from, NodeId to, const json::object& s, std::string_view path) {
    const Bounds b = RETORT_TRY(bounds(s, path, true));
    if (b.low > b.high) return invalid(path, "minimum", "and the maximum leave no integer");
    if (b.high >= 0) magnitudes(from, to, std::max<std::int64_t>(b.low, 0), b.high);
    if (b.low < 0) magnitudes(network_->text(from, "-"), to, b.high < 0 ? -b.high : 1, -b.low);
    return {};
  }

  /// Magnitudes between two whole numbers, with up to 15 digits after a point.
  void fractions(NodeId from, NodeId to, std::int64_t low, std::int64_t high, bool without_low,
                 bool without_high) {
    const NodeId point = node();
    const NodeId fraction = network_->text(point, ".");
    network_->skip(digit_run(fraction, 1, 15), to);
    const auto whole = [&](std::int64_t a, std::int64_t b, NodeId then) {
      if (a <= b) magnitudes(from, then, a, b);
    };
    const NodeId bare = node();  // a whole part that may stand alone or have any fraction
    network_->skip(bare, to);
    network_->skip(bare, point);
    whole(without_low ? low + 1 : low, high - 1, bare);
    if (low == high) {
      if (!without_low && !without_high) whole(low, low, to);
      return;
    }
    if (!without_high) {
      const NodeId last = node();
      whole(high, high, last);
      network_->skip(last, to);
      network_->skip(network_->text(last, ".0"), to);
    }
    if (without_low) {  // the bound's whole part with some digit that is not zero
      const NodeId first = node();
      whole(low, low, first);
      NodeId at = network_->text(first, ".");
      for (std::size_t i = 0; i < 15; ++i) {
        const NodeId next = node();
        network_->bytes(at, '1', '9', next);
        network_->skip(digit_run(next, 0, 14 - i), to);
        at = network_->text(at, "0");
      }
    }
  }

  Result<void> number(NodeId from, NodeId to, const json::object& s, std::string_view path) {
    const Bounds b = RETORT_TRY(bounds(s, path, false));
    if (!b.given) {
      const NodeId minus = network_->text(from, "-"), whole = node();
      for (const NodeId at : {from, minus}) {
        network_->bytes(at, '0', '0', whole);
        const NodeId rest = node();
        network_->bytes(at, '1', '9', rest);
        network_->skip(digit_run(rest, 0, 14), whole);
      }
      const NodeId point = network_->text(whole, "."), after = digit_run(point, 1, 15);
      network_->skip(whole, after);
      network_->skip(after, to);
      const NodeId e = node();
      network_->bytes(after, 'e', 'e', e);
      network_->bytes(after, 'E', 'E', e);
      const NodeId sign = node();
      network_->skip(e, sign);
      network_->bytes(e, '+', '+', sign);
      network_->bytes(e, '-', '-', sign);
      network_->skip(digit_run(sign, 1, 2), to);
      return {};
    }
    if (b.low > b.high || (b.low == b.high && (b.without_low || b.without_high)))
      return invalid(path, "minimum", "and the maximum leave no number");
    if (b.high >= 0 && !(b.high == 0 && b.without_high))
      fractions(from, to, std::max<std::int64_t>(b.low, 0), b.high, b.low >= 0 && b.without_low,
                b.without_high);
    if (b.low < 0) {
      const NodeId minus = network_->text(from, "-");
      // From the bound that is nearer to zero; zero itself has no sign.
      fractions(minus, to, b.high < 0 ? -b.high : 0, -b.low, b.high < 0 ? b.without_high : true,
                b.without_low);
    }
    return {};
  }

  RuleId free_object() {
    if (object_) return *object_;
    object_ = network_->rule(true);
    members(*object_, any());
    return *object_;
  }
  /// An object with any keys, each member's value by `value`.
  void members(RuleId rule, RuleId value) {
    const auto [start, end, nests] = network_->rule_of(rule);
    const NodeId open = network_->text(start, "{"), key = node(), after = node(), close = node();
    network_->skip(white_space(open), key);
    network_->skip(white_space(open), close);
    NodeId at = white_space(network_->text(any_string(key), ":"));
    network_->call(at, value, after);
    network_->skip(white_space(network_->text(after, ",")), key);
    network_->skip(white_space(after), close);
    network_->skip(network_->text(close, "}"), end);
  }
  RuleId free_array() {
    if (array_) return *array_;
    array_ = network_->rule(true);
    items(*array_, any(), 0, std::nullopt);
    return *array_;
  }
  void items(RuleId rule, RuleId item, std::uint64_t least, std::optional<std::uint64_t> most) {
    const auto [start, end, nests] = network_->rule_of(rule);
    const NodeId open = network_->text(start, "["), close = node();
    network_->skip(network_->text(close, "]"), end);
    if (least == 0) network_->skip(white_space(open), close);
    if (most == 0u) return;
    NodeId at = called(white_space(open), item);  // after `count` items
    for (std::uint64_t count = 1;; ++count) {
      if (count >= least) network_->skip(white_space(at), close);
      if (most && count == *most) return;
      const NodeId next = white_space(network_->text(at, ","));
      if (!most && count >= least) {
        network_->call(next, item, at);
        return;
      }
      at = called(next, item);
    }
  }

  /// Any value.
  RuleId any() {
    if (any_) return *any_;
    any_ = network_->rule(false);
    const auto [start, end, nests] = network_->rule_of(*any_);
    const json::object none;
    network_->skip(any_string(start), end);
    (void)number(start, end, none, "");  // without bounds nothing is refused
    for (const char* word : {"true", "false", "null"}) network_->skip(network_->text(start, word), end);
    network_->call(start, free_object(), end);
    network_->call(start, free_array(), end);
    return *any_;
  }

  // ---- schemas ----

  Result<RuleId> schema(const json::value& value, const std::string& path) {
    if (const auto known = rules_.find(&value); known != rules_.end()) return known->second;
    if (network_->size() > kMaxNodes)
      return fail(ErrorCode::kUnsupported, "schema", "the schema is too large (at {})", path);
    if (++depth_ > 64)
      return fail(ErrorCode::kUnsupported, "schema", "the schema nests too deeply (at {})", path);
    const RuleId rule = network_->rule(false);
    rules_.emplace(&value, rule);
    const auto [start, end, nests] = network_->rule_of(rule);
    if (value.is_bool()) {
      if (!value.get_bool()) return fail(ErrorCode::kInvalid, "schema", "{} is false: nothing fits", path);
      network_->call(start, any(), end);
    } else if (value.is_object()) {
      RETORT_TRY(alternatives(value.get_object(), start, end, path));
    } else {
      return fail(ErrorCode::kInvalid, "schema", "{} is neither an object nor true", path);
    }
    --depth_;
    return rule;
  }

  /// No keyword but `keyword`, annotations and `more`.
  static Result<void> alone(const json::object& s, std::string_view path, std::string_view keyword,
                            std::string_view more = "") {
    for (const auto& member : s)
      if (member.key() != json::string_view(keyword) && member.key() != json::string_view(more) &&
          kAnnotations.count(member.key()) == 0)
        return unsupported(path, member.key(), fmt::format("beside '{}' is not supported", keyword));
    return {};
  }

  Result<void> alternatives(const json::object& s, NodeId start, NodeId end, const std::string& path) {
    if (const json::value* ref = s.if_contains("$ref")) {
      RETORT_TRY(alone(s, path, "$ref"));
      if (!ref->is_string()) return invalid(path, "$ref", "is not a text");
      const std::string_view target = ref->get_string();
      if (target != "#" && !target.starts_with("#/"))
        return unsupported(path, "$ref", "to another document is not supported; '#/…' is");
      boost::system::error_code error;
      const json::value* found = root_.find_pointer(target.substr(1), error);
      if (found == nullptr)
        return invalid(path, "$ref", fmt::format("names '{}', which is not there", target));
      network_->call(start, RETORT_TRY(schema(*found, std::string(target))), end);
      return {};
    }
    for (const char* keyword : {"anyOf", "allOf"})
      if (const json::value* list = s.if_contains(keyword)) {
        RETORT_TRY(alone(s, path, keyword));
        if (!list->is_array() || list->get_array().empty())
          return invalid(path, keyword, "is not a list of schemas");
        if (keyword == std::string_view("allOf") && list->get_array().size() > 1)
          return unsupported(path, keyword, "of more than one schema is not supported");
        for (std::size_t i = 0; i < list->get_array().size(); ++i)
          network_->call(start,
                         RETORT_TRY(schema(list->get_array()[i], fmt::format("{}/{}/{}", path, keyword, i))),
                         end);
        return {};
      }
    std::set<std::string_view> types;
    const json::value* type = s.if_contains("type");
    if (type != nullptr) {
      const json::array list = type->is_array() ? type->get_array() : json::array{*type};
      for (const json::value& name : list) {
        const auto known = std::find_if(std::begin(kTypes), std::end(kTypes), [&](std::string_view t) {
          return name.is_string() && std::string_view(name.get_string()) == t;
        });
        if (known == std::end(kTypes))
          return invalid(path, "type", fmt::format("is {}", json::serialize(name)));
        types.insert(*known);
      }
      if (types.empty()) return invalid(path, "type", "is empty");
    }
    for (const char* keyword : {"const", "enum"})
      if (const json::value* given = s.if_contains(keyword)) {
        RETORT_TRY(alone(s, path, keyword, "type"));
        const bool one = keyword == std::string_view("const");
        if (!one && !given->is_array()) return invalid(path, keyword, "is not a list");
        bool some = false;
        for (const json::value& value : one ? json::array{*given} : given->get_array()) {
          if (type != nullptr && !is_of(value, types)) continue;
          some = true;
          network_->skip(network_->text(start, RETORT_TRY(spelled(value, path, keyword))), end);
        }
        return some ? Result<void>() : invalid(path, keyword, "holds no value of its type");
      }
    if (type == nullptr) {  // what the other keywords speak of; a schema without any is of every type
      for (const auto& [keywords, name] : {std::pair{&kOfObjects, "object"},
                                           {&kOfArrays, "array"},
                                           {&kOfStrings, "string"},
                                           {&kOfNumbers, "number"}})
        for (const std::string_view keyword : *keywords)
          if (s.contains(keyword)) types.insert(name);
      if (types.size() > 1)
        return unsupported(path, "type", "is missing where keywords of several types are");
    }
    for (const auto& member : s) {
      const std::string_view key = member.key();
      const auto of = [&](const std::set<std::string_view>& keywords,
                          std::initializer_list<std::string_view> names) {
        return keywords.count(key) != 0 && std::any_of(names.begin(), names.end(), [&](std::string_view n) {
                 return types.count(n) != 0;
               });
      };
      const bool known = key == "type" || kAnnotations.count(key) != 0 || of(kOfStrings, {"string"}) ||
                         of(kOfNumbers, {"number", "integer"}) || of(kOfObjects, {"object"}) ||
                         of(kOfArrays, {"array"});
      // Keywords of other types have no effect by the standard; they are most often a mistake.
      if (!known)
        return unsupported(
            path, key,
            kOfStrings.count(key) + kOfNumbers.count(key) + kOfObjects.count(key) + kOfArrays.count(key) != 0
                ? "does not go with this type"
                : "is not supported");
    }
    if (types.empty()) {
      network_->call(start, any(), end);
      return {};
    }
    for (const std::string_view name : types) {
      if (name == "null") network_->skip(network_->text(start, "null"), end);
      if (name == "boolean")
        for (const char* word : {"true", "false"}) network_->skip(network_->text(start, word), end);
      if (name == "integer" && types.count("number") == 0) RETORT_TRY(integer(start, end, s, path));
      if (name == "number") RETORT_TRY(number(start, end, s, path));
      if (name == "string") RETORT_TRY(string(start, end, s, path));
      if (name == "array") network_->call(start, RETORT_TRY(array(s, path)), end);
      if (name == "object") network_->call(start, RETORT_TRY(object(s, path)), end);
    }
    return {};
  }

  static bool is_of(const json::value& value, const std::set<std::string_view>& types) {
    if (value.is_object()) return types.count("object") != 0;
    if (value.is_array()) return types.count("array") != 0;
    if (value.is_string()) return types.count("string") != 0;
    if (value.is_bool()) return types.count("boolean") != 0;
    if (value.is_null()) return types.count("null") != 0;
    if (types.count("number") != 0) return true;
    return types.count("integer") != 0 &&
           (!value.is_double() || value.get_double() == std::floor(value.get_double()));
  }

  Result<std::optional<std::uint64_t>> count(const json::object& s, std::string_view key,
                                             std::string_view path) const {
    const json::value* value = s.if_contains(key);
    if (value == nullptr) return std::optional<std::uint64_t>();
    if (!value->is_number()) return invalid(path, key, "is not a number");
    const double x = value->to_number<double>();
    if (!(x >= 0) || x != std::floor(x)) return invalid(path, key, "is not a whole number from 0");
    if (x > static_cast<double>(kMaxCount))
      return unsupported(path, key, fmt::format("above {} is not supported", kMaxCount));
    return std::optional<std::uint64_t>(static_cast<std::uint64_t>(x));
  }

  Result<void> string(NodeId start, NodeId end, const json::object& s, const std::string& path) {
    const std::uint64_t least = RETORT_TRY(count(s, "minLength", path)).value_or(0);
    const std::optional<std::uint64_t> most = RETORT_TRY(count(s, "maxLength", path));
    NodeId at = network_->text(start, "\"");
    if (const json::value* pattern = s.if_contains("pattern")) {
      if (s.contains("minLength") || s.contains("maxLength"))
        return unsupported(path, "pattern", "together with minLength or maxLength is not supported");
      if (!pattern->is_string()) return invalid(path, "pattern", "is not a text");
      const NodeId matched = node();
      if (const Result<void> done =
              compile_pattern(*network_, at, matched, pattern->get_string(), options_.ascii);
          !done)
        return unsupported(path, "pattern", fmt::format("is refused: {}", done.error().message));
      network_->skip(network_->text(matched, "\""), end);
      return {};
    }
    if (most && *most < least) return invalid(path, "maxLength", "is below minLength");
    for (std::uint64_t i = 0; i < least; ++i) at = called(at, character());
    if (!most) {
      const NodeId loop = node();
      network_->skip(at, loop);
      network_->call(loop, character(), loop);
      at = loop;
    } else {
      const NodeId close = node();
      for (std::uint64_t i = least; i < *most; ++i) {
        network_->skip(at, close);
        at = called(at, character());
      }
      network_->skip(at, close);
      at = close;
    }
    network_->skip(network_->text(at, "\""), end);
    return {};
  }

  Result<RuleId> array(const json::object& s, const std::string& path) {
    const std::uint64_t least = RETORT_TRY(count(s, "minItems", path)).value_or(0);
    const std::optional<std::uint64_t> most = RETORT_TRY(count(s, "maxItems", path));
    if (most && *most < least) return invalid(path, "maxItems", "is below minItems");
    const json::value* of = s.if_contains("items");
    const RuleId item = of == nullptr ? any() : RETORT_TRY(schema(*of, path + "/items"));
    const RuleId rule = network_->rule(true);
    items(rule, item, least, most);
    return rule;
  }

  Result<RuleId> object(const json::object& s, const std::string& path) {
    struct Member {
      std::string key;
      RuleId value;
      bool required;
    };
    std::vector<Member> members_of;
    const json::value* more = s.if_contains("additionalProperties");
    std::set<std::string, std::less<>> required;
    if (const json::value* list = s.if_contains("required")) {
      if (!list->is_array()) return invalid(path, "required", "is not a list");
      for (const json::value& key : list->get_array()) {
        if (!key.is_string()) return invalid(path, "required", "is not a list of texts");
        required.emplace(key.get_string());
      }
    }
    if (const json::value* properties = s.if_contains("properties")) {
      if (!properties->is_object()) return invalid(path, "properties", "is not an object");
      for (const auto& member : properties->get_object()) {
        const std::string key(member.key());
        members_of.push_back(
            {key, RETORT_TRY(schema(member.value(), path + "/properties/" + key)), required.erase(key) != 0});
      }
    }
    const bool closed = more != nullptr && more->is_bool() && !more->get_bool();
    for (const std::string& key : required) {  // not among the properties
      if (closed)
        return invalid(path, "required", fmt::format("names '{}', which additionalProperties forbids", key));
      members_of.push_back(
          {key, more == nullptr ? any() : RETORT_TRY(schema(*more, path + "/additionalProperties")), true});
    }
    const RuleId rule = network_->rule(true);
    const auto [start, end, nests] = network_->rule_of(rule);
    if (members_of.empty() && !closed) {
      members(rule, more == nullptr ? any() : RETORT_TRY(schema(*more, path + "/additionalProperties")));
      return rule;
    }
    // `first`: no member has been written yet; `rest`: some has.
    NodeId first = network_->text(start, "{");
    const NodeId close = node();
    std::optional<NodeId> rest;
    for (const Member& member : members_of) {
      const NodeId key = node(), after = node();
      network_->skip(white_space(first), key);
      if (rest) network_->skip(white_space(network_->text(*rest, ",")), key);
      const NodeId colon =
          network_->text(key, RETORT_TRY(spelled(json::string(member.key), path, "properties")) + ":");
      network_->call(white_space(colon), member.value, after);
      if (!member.required) {
        if (rest) network_->skip(*rest, after);
      } else {
        first = node();  // cannot be reached: something has been written
      }
      rest = after;
    }
    if (rest) network_->skip(white_space(*rest), close);
    network_->skip(white_space(first), close);
    network_->skip(network_->text(close, "}"), end);
    return rule;
  }

  const json::value& root_;
  const SchemaOptions options_;
  std::shared_ptr<Network> network_;
  std::map<const json::value*, RuleId> rules_;
  std::optional<RuleId> space_, character_, any_, object_, array_;
  int depth_ = 0;
};

}  // namespace

Result<std::shared_ptr<const Network>> compile_schema(const json::value& schema,
                                                      const SchemaOptions& options) {
  return SchemaCompiler(schema, options).compile();
}

Result<std::shared_ptr<const Network>> any_object(const SchemaOptions& options) {
  return SchemaCompiler(json::value(nullptr), options).compile_any_object();
}

}  // namespace retort::grammar
