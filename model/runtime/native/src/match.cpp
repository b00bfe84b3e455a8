#include "match.h"

#include "probability.h"

namespace aft {

void Match::mix(const Target& target, float* logits, int32_t vocab, const Moment& moment) const {
    int32_t count = 0;
    const uint16_t* tokens = moment.recent->window_at(moment.end, count);
    if (count > window) {  // more may be remembered than is searched
        tokens += count - window;
        count = window;
    }
    int32_t places[MAX_MATCHES], followed[MAX_MATCHES], different = 0;
    double mass[MAX_MATCHES + 8] = {};  // read in whole vectors
    const int32_t found = target.search(tokens, count, shortest, most, places);
    const int32_t longest = shortest + int32_t(masses.size()) - 1;
    for (int32_t i = 0; i < found; ++i) {
        const int32_t place = places[i];
        int32_t length = shortest;
        while (length < longest && length < place && tokens[place - length - 1] == tokens[count - length - 1]) ++length;
        int32_t at = 0;
        while (at < different && followed[at] != tokens[place]) ++at;
        if (at == different) followed[different++] = tokens[place];
        mass[at] = mass[at] + masses[length - shortest];
    }
    if (different) target.probability->add(logits, vocab, followed, mass, different);
}

}  // namespace aft
