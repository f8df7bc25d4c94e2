#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

#include <gtest/gtest.h>
