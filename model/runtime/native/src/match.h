// A match model: model/match.py in C++, the same formula; here one order of operations, so one set of bits.
#pragma once
#include <cstdint>
#include <vector>

#include "types.h"

namespace aft {

// The last tokens of a stream, oldest first, with room before they must be moved.
class Recent {
public:
    // Remembers the last ``window`` of all tokens, also as they were up to ``ahead`` tokens ago; 0: none.
    Recent(int32_t window = 0, int32_t ahead = 0) : window_(window), ahead_(ahead) {}

    void push(int32_t token) {
        if (!window_) return;
        if (int64_t(tokens_.size()) == capacity()) {
            const int64_t gone = capacity() - window_ - ahead_;
            tokens_.erase(tokens_.begin(), tokens_.begin() + gone);
            dropped_ += gone;
        }
        if (tokens_.capacity() < size_t(capacity())) tokens_.reserve(capacity());
        tokens_.push_back(uint16_t(token));
    }
    // Tokens that were seen at all, those that are forgotten too.
    int64_t end() const { return dropped_ + int64_t(tokens_.size()); }
    // The window's tokens as it stood when ``end`` had been seen.
    const uint16_t* window_at(int64_t end, int32_t& count) const {
        const int64_t kept = end - dropped_;
        count = int32_t(kept < window_ ? kept : window_);
        return tokens_.data() + kept - count;
    }

private:
    int64_t capacity() const { return int64_t(window_) + ahead_ + window_ / 8 + 64; }

    int32_t window_, ahead_;
    int64_t dropped_ = 0;
    std::vector<uint16_t> tokens_;
};

// A stream as it was when it had seen ``end`` tokens.
struct Moment {
    const Recent* recent;
    int64_t end;
};

struct Match {
    int32_t window = 0;  // 0: no match model
    int32_t shortest = 0, most = 0;
    std::vector<double> masses;  // by length from ``shortest`` on

    explicit operator bool() const { return window > 0; }
    // Logits of the network and of the match model together, in place.
    void mix(const Target& target, float* logits, int32_t vocab, const Moment& moment) const;
};

}  // namespace aft
