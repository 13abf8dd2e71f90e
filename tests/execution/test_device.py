"""Devices: training makes nothing elsewhere than on its device; a GPU, where there is one, gives what the CPU gives."""



