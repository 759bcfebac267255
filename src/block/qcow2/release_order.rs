//! The order in which a cache's tables were released, for the choice of the one that makes room.
//!
//! A list through the cache's own places: to move one to the end costs the same however many there are. Must never
//! hold a place twice; which of them are in use is the cache's business.

/// What is beyond both ends.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

/// Places by the time of their last release.
#[derive(Clone)]
pub(super) struct ReleaseOrder {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
}

impl ReleaseOrder {
    /// No place is in the order; `places` may come to be.
    pub(super) fn new(places: usize) -> ReleaseOrder {
        ReleaseOrder { links: vec![Link { older: NONE, newer: NONE }; places], oldest: NONE, newest: NONE }
    }

    /// The place was released just now.
    #[inline]
    pub(super) fn touch(&mut self, place: usize) {
        if self.newest == place as u32 {
            return;
        }
        self.remove(place);
        self.links[place] = Link { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = place as u32,
            newest => self.links[newest as usize].newer = place as u32,
        }
        self.newest = place as u32;
    }

    /// Takes a place out, if it is in.
    pub(super) fn remove(&mut self, place: usize) {
        let Link { older, newer } = self.links[place];
        let is_in = older != NONE || newer != NONE || self.newest == place as u32;
        if !is_in {
            return;
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.links[place] = Link { older: NONE, newer: NONE };
    }

    /// The places, the one that was released longest ago first.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        let known = |place: u32| (place != NONE).then_some(place as usize);
        std::iter::successors(known(self.oldest), move |place| known(self.links[*place].newer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(touched: &[usize]) -> ReleaseOrder {
        let mut order = ReleaseOrder::new(4);
        touched.iter().for_each(|place| order.touch(*place));
        order
    }

    fn places(order: &ReleaseOrder) -> Vec<usize> {
        order.iter().collect()
    }

    #[test]
    fn the_last_release_counts() {
        assert!(places(&order(&[])).is_empty());
        assert_eq!(places(&order(&[2, 0, 3])), [2, 0, 3]);
        assert_eq!(places(&order(&[2, 0, 3, 3, 2])), [0, 3, 2]);
        assert_eq!(places(&order(&[2, 0, 3, 0])), [2, 3, 0]);
    }

    #[test]
    fn a_place_leaves_from_anywhere() {
        for (place, rest) in [(2, [0, 3]), (0, [2, 3]), (3, [2, 0])] {
            let mut order = order(&[2, 0, 3]);
            order.remove(place);
            order.remove(place);
            order.remove(1);
            assert_eq!(places(&order), rest);
            order.touch(place);
            assert_eq!(places(&order), [rest[0], rest[1], place]);
        }
        let mut alone = order(&[1]);
        alone.remove(1);
        assert!(places(&alone).is_empty());
    }
}
